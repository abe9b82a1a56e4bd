//! Time to join and isolate two, four and eight endpoints in the lab: in one transaction, compared with one by one.

use std::fmt::Write;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use lab::live::Live;
use lab::{Daemon, Lab, Profile, Vm};

/// Eight endpoints below one switch.
const ENDPOINTS: [&str; 8] = [
    "0000:03:00.0",
    "0000:04:00.0",
    "0000:05:00.0",
    "0000:06:00.0",
    "0000:07:00.0",
    "0000:08:00.0",
    "0000:09:00.0",
    "0000:0a:00.0",
];

/// Timeout for one transaction in an emulated host.
const TRANSACTION: Duration = Duration::from_secs(300);

/// Time for a guest under emulation to eject a device, in seconds.
const GUEST: &str = "120";

/// Numbers of endpoints that are regrouped in one transaction.
const COUNTS: [usize; 3] = [2, 4, 8];

/// The comparisons, made for joining and for isolating.
const ROWS: [&str; 4] = [
    "four, one transaction by three",
    "eight, one transaction by seven",
    "four by two, one transaction each",
    "eight by two, one transaction each",
];

/// The ratios of a round, in the order of [`ROWS`].
type Ratios = [f64; ROWS.len()];

/// Measures, and returns the table.
pub(crate) fn run(rounds: u8) -> Result<String> {
    let lab = Lab::boot(&Profile::named("edu-eight-ports")?, "bench-regroup")?;
    for endpoint in ENDPOINTS {
        lab.bind_vfio(endpoint)?;
    }
    let mut text = String::from("| what | seen | lowest and highest round |\n|---|---|---|\n");
    lines(&mut text, "no VM has them", &measure(&lab, rounds)?)?;
    let vm = (1..)
        .zip(ENDPOINTS)
        .fold(Vm::new("sh"), |vm, (n, endpoint)| {
            vm.device_option(&format!("path=/sys/bus/pci/devices/{endpoint},id=e{n}"))
        });
    let live = Live::boot_vm(&lab, &vm);
    let daemon = Daemon::start(&lab, &["web"]);
    let plugged = measure(&lab, rounds)?;
    daemon.stop();
    drop(live);
    lines(&mut text, "a running guest has all eight", &plugged)?;
    Ok(text)
}

/// Rows of the table from the ratios of all rounds: first of joining, then of isolating.
fn lines(text: &mut String, who: &str, rounds: &[[Ratios; 2]]) -> Result<()> {
    for (goal, done) in ["joined", "isolated"].into_iter().enumerate() {
        for (row, what) in ROWS.into_iter().enumerate() {
            let ratios = rounds.iter().filter_map(|round| round.get(goal)?.get(row));
            let mut ratios: Vec<f64> = ratios.copied().collect();
            ratios.sort_by(f64::total_cmp);
            let middle = ratios.get(ratios.len() / 2);
            if let (Some(low), Some(middle), Some(high)) = (ratios.first(), middle, ratios.last()) {
                writeln!(
                    text,
                    "| {done}, {who}: {what} | {middle:.2} | {low:.2} – {high:.2} |"
                )?;
            }
        }
    }
    Ok(())
}

/// Joins and isolates in each round, at once and one by one.
fn measure(lab: &Lab, rounds: u8) -> Result<Vec<[Ratios; 2]>> {
    let mut seen = Vec::new();
    for round in 1..=rounds {
        let (mut joins, mut isolates) = (Vec::new(), Vec::new());
        for count in COUNTS {
            let (set, _) = ENDPOINTS.split_at(count);
            let mut join = Times {
                at_once: apply(lab, "--join", set)?,
                ..Times::default()
            };
            let mut isolate = Times {
                at_once: apply(lab, "--isolate", set)?,
                ..Times::default()
            };
            for more in 2..=count {
                let (some, _) = set.split_at(more);
                join.by_steps += apply(lab, "--join", some)?;
            }
            // The first endpoint is then alone in its group.
            for endpoint in set.iter().skip(1) {
                isolate.by_steps += apply(lab, "--isolate", &[endpoint])?;
            }
            eprintln!(
                "bench: regroup, round {round} of {rounds}, {count}: join {join:.1?}, isolate {isolate:.1?}"
            );
            joins.push(join);
            isolates.push(isolate);
        }
        seen.push([ratios(&joins), ratios(&isolates)]);
    }
    Ok(seen)
}

/// Time to regroup a number of endpoints.
#[derive(Debug, Clone, Copy, Default)]
struct Times {
    at_once: Duration,
    by_steps: Duration,
}

/// The ratios in the order of [`ROWS`]; `times` are in that of [`COUNTS`].
fn ratios(times: &[Times]) -> Ratios {
    let [two, four, eight] = [0, 1, 2].map(|at| times.get(at).copied().unwrap_or_default());
    let by = |a: Duration, b: Duration| a.as_secs_f64() / b.as_secs_f64();
    [
        by(four.at_once, four.by_steps),
        by(eight.at_once, eight.by_steps),
        by(four.at_once, two.at_once),
        by(eight.at_once, two.at_once),
    ]
}

/// Runs `p2pctl apply` and returns the time that it took. The switch has no ACS, so exposures of isolated endpoints and
/// intermediate groups are accepted by option.
fn apply(lab: &Lab, goal: &str, endpoints: &[&str]) -> Result<Duration> {
    let words = ["p2pctl", "apply", "--guest-timeout", GUEST, goal];
    let words = words.iter().chain(endpoints);
    let accepted = [["--expose"].as_slice(), &ENDPOINTS, &["--with"], &ENDPOINTS].concat();
    let words = words.chain(&accepted).copied();
    let started = Instant::now();
    let output = lab.command(words).deadline(TRANSACTION).run()?;
    let took = started.elapsed();
    ensure!(output.code() == Some(0), "{output:?}");
    Ok(took)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_made_for_joining_and_for_isolating() {
        let times = |at_once, by_steps| Times {
            at_once: Duration::from_secs(at_once),
            by_steps: Duration::from_secs(by_steps),
        };
        let join = ratios(&[times(2, 2), times(3, 6), times(5, 20)]);
        assert_eq!(join, [0.5, 0.25, 1.5, 2.5]);
        let mut text = String::new();
        lines(&mut text, "no VM has them", &[[join, [1.0; 4]]]).unwrap();
        let seen: Vec<&str> = text.lines().collect();
        assert_eq!(seen.len(), 8);
        assert!(seen[1].contains("joined, no VM has them: eight, one transaction by seven | 0.25"));
        assert!(seen[4].starts_with("| isolated"), "{text}");
    }
}
