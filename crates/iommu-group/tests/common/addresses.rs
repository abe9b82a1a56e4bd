//! Addresses for machines that have none: BARs for functions, and windows for bridges around them.

use test_machine::random::Random;

/// Units of windows.
const MIB: u64 = 1 << 20;
const START: u64 = 0x8000_0000;

/// The lines of a machine, each with the addresses that firmware might give it: windows hold what is below them and some
/// room that nobody claims, some bridges have none, and some ports have registers.
pub(crate) fn assigned(text: &str, random: &mut Random) -> String {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let mut next = START;
    let mut at = 0;
    while at < lines.len() {
        at = assign(&mut lines, at, &mut next, random);
    }
    lines.join("\n")
}

fn depth(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

/// Assigns to a line and all below it; the line after those.
fn assign(lines: &mut [String], at: usize, next: &mut u64, random: &mut Random) -> usize {
    let own = lines[at].clone();
    if own.trim().is_empty() {
        return at + 1;
    }
    let kind = own.split_whitespace().nth(1).unwrap_or_default();
    let is_bridge = kind.contains("port")
        || kind.ends_with("stream")
        || kind.contains("2pci")
        || kind.ends_with("bridge");
    if !is_bridge {
        if kind != "host" && !own.contains(" vf=") {
            bar(&mut lines[at], next);
        }
        return at + 1;
    }
    if random.once_in(3) {
        bar(&mut lines[at], next);
    }
    if lines[at].contains("acs=7f/1d") && random.once_in(2) {
        let vector = random.number() & 0xf;
        lines[at] = lines[at].replace(
            "acs=7f/1d",
            &format!("acs=7f/3d vector=8 egress={vector:x}"),
        );
    }
    let start = *next;
    *next += MIB * random.below(2) as u64;
    let mut below = at + 1;
    while below < lines.len() && depth(&lines[below]) > depth(&own) {
        below = assign(lines, below, next, random);
    }
    *next += MIB * random.below(2) as u64;
    if *next > start {
        lines[at].push_str(&format!(" mem={start:x}-{:x}", *next - 1));
    }
    below
}

fn bar(line: &mut String, next: &mut u64) {
    line.push_str(&format!(" bar0={:x}+4000", *next));
    *next += MIB;
}
