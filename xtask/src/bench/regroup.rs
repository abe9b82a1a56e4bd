//! Eight endpoints joined in one transaction, against one after the other, in the lab.

use std::fmt::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::{Lab, Profile};

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

/// How long one transaction may take in an emulated host.
const TRANSACTION: Duration = Duration::from_secs(120);

/// Measures, and says what was seen as lines of a table.
pub(crate) fn run(rounds: u8) -> Result<String> {
    let lab = Lab::boot(&Profile::named("edu-eight-ports")?, "bench-regroup")?;
    for endpoint in ENDPOINTS {
        lab.bind_vfio(endpoint)?;
    }
    let mut ratios = Vec::new();
    for round in 1..=rounds {
        eprintln!("bench: regroup, round {round} of {rounds}");
        let together = apply(&lab, &join(&ENDPOINTS))?;
        isolate(&lab)?;
        let mut single = Duration::ZERO;
        for count in 2..=ENDPOINTS.len() {
            let (set, _) = ENDPOINTS.split_at(count);
            single += apply(&lab, &join(set))?;
        }
        isolate(&lab)?;
        ratios.push(together.as_secs_f64() / single.as_secs_f64());
    }
    ratios.sort_by(f64::total_cmp);
    let (Some(low), Some(high), Some(middle)) =
        (ratios.first(), ratios.last(), ratios.get(ratios.len() / 2))
    else {
        return Ok(String::new());
    };
    let mut text = String::new();
    writeln!(
        text,
        "| eight endpoints joined in one transaction, by one after the other | {middle:.2} | {low:.2} – {high:.2} |"
    )?;
    Ok(text)
}

fn join<'a>(endpoints: &[&'a str]) -> Vec<&'a str> {
    let mut words = vec!["--join"];
    words.extend(endpoints);
    words
}

/// Has a plan carried out, and says how long that took.
fn apply(lab: &Lab, goals: &[&str]) -> Result<Duration> {
    let mut words = vec!["p2pctl", "apply"];
    words.extend(goals);
    let started = Instant::now();
    let output = lab.command(words).deadline(TRANSACTION).run()?;
    let took = started.elapsed();
    ensure!(output.code() == Some(0), "{output:?}");
    Ok(took)
}

/// Splits all of them. The switch has no ACS, so that Linux alone keeps them apart has to be accepted.
fn isolate(lab: &Lab) -> Result<()> {
    let mut words = vec!["--isolate"];
    words.extend(ENDPOINTS);
    words.push("--expose");
    words.extend(ENDPOINTS);
    apply(lab, &words)
        .map(drop)
        .context("cannot split them again")
}
