//! Machines drawn from a seed.

use std::fmt::Write;

/// A small generator of numbers: the same seed gives the same numbers everywhere.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// A generator with a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.number() >> 33).unwrap_or(0) % end.max(1)
    }

    /// True once in `times` on average.
    pub fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    /// One element of `from`.
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

/// A machine with root ports, switches up to three levels deep, bridges, and devices of all kinds.
pub fn machine(random: &mut Random) -> String {
    let mut text = String::from("\n00:00.0 host id=8086:29c0\n");
    let mut bus = 0;
    let ports = 1 + random.below(6);
    for device in 0..ports {
        let functions = if random.once_in(3) {
            1 + random.below(4)
        } else {
            1
        };
        for function in 0..functions {
            let mf = if functions > 1 && !random.once_in(6) {
                " mf"
            } else {
                ""
            };
            let acs = acs(random);
            let ari = if random.once_in(4) { " ari" } else { "" };
            let _ = writeln!(
                text,
                "00:{:02x}.{function} root-port{acs}{mf}{ari}",
                device + 1
            );
            below_port(random, &mut text, &mut bus, 1, 0);
        }
    }
    for device in 16..16 + random.below(4) {
        let kind = random.pick(&["rciep", "rcec", "pci", "rciep id=8086:0b25"]);
        for function in 0..1 + random.below(3) {
            let mf = if random.once_in(2) { " mf" } else { "" };
            let _ = writeln!(text, "00:{device:02x}.{function} {kind}{mf}");
        }
    }
    text
}

fn acs(random: &mut Random) -> String {
    let capability = random.pick(&["", "5f", "5f", "5f", "1d", "7f", "0"]);
    if capability.is_empty() {
        return String::new();
    }
    let control = random.pick(&["1d", "1d", "0", "11", "15"]);
    format!(" acs={capability}/{control}")
}

fn below_port(random: &mut Random, text: &mut String, bus: &mut u8, depth: usize, level: usize) {
    let Some(next) = bus.checked_add(1).filter(|next| *next < 0xf0) else {
        return;
    };
    *bus = next;
    let indent = "  ".repeat(depth);
    let own = *bus;
    match random.below(10) {
        0 => {}
        1..=3 if level < 3 => {
            let _ = writeln!(text, "{indent}{own:02x}:00.0 upstream{}", acs(random));
            let Some(inner) = bus.checked_add(1) else {
                return;
            };
            *bus = inner;
            for port in 0..1 + random.below(4) {
                let indent = "  ".repeat(depth + 1);
                let acs = acs(random);
                let _ = writeln!(
                    text,
                    "{indent}{inner:02x}:{port:02x}.0 downstream{acs} port={port}"
                );
                below_port(random, text, bus, depth + 2, level + 1);
            }
        }
        4 => {
            let kind = random.pick(&["pci-bridge", "pci2pci", "pcie-bridge"]);
            let _ = writeln!(text, "{indent}{own:02x}:00.0 {kind}");
            let Some(inner) = bus.checked_add(1) else {
                return;
            };
            *bus = inner;
            for device in 0..random.below(4) {
                let _ = writeln!(text, "{indent}  {inner:02x}:{device:02x}.0 pci");
            }
        }
        5 | 6 => {
            for function in 0..1 + random.below(4) {
                let mf = if random.once_in(5) { "" } else { " mf" };
                let acs = if random.once_in(3) {
                    acs(random)
                } else {
                    String::new()
                };
                let id = if random.once_in(8) {
                    " id=1b4b:9230"
                } else {
                    ""
                };
                let _ = writeln!(
                    text,
                    "{indent}{own:02x}:00.{function} endpoint{acs}{mf}{id}"
                );
            }
        }
        7 => {
            let _ = writeln!(text, "{indent}{own:02x}:00.0 endpoint sriov=8 mf");
            for function in 0..1 + random.below(6) {
                let _ = writeln!(
                    text,
                    "{indent}{own:02x}:10.{function} endpoint vf={own:02x}:00.0"
                );
            }
        }
        _ => {
            let ats = random.pick(&["", " ats=on", " ats=off"]);
            let _ = writeln!(text, "{indent}{own:02x}:00.0 endpoint{ats}");
        }
    }
}
