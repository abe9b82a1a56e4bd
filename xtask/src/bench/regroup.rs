//! Eight endpoints joined and isolated in one transaction, against one after the other, in the lab.

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

/// How long one transaction may take in an emulated host.
const TRANSACTION: Duration = Duration::from_secs(300);

/// How long a guest under emulation may take to let go of a device, in seconds.
const GUEST: &str = "120";

/// Ratios of all rounds.
#[derive(Default)]
struct Ratios {
    joined: Vec<f64>,
    isolated: Vec<f64>,
}

/// Measures, and says what was seen as lines of a table.
pub(crate) fn run(rounds: u8) -> Result<String> {
    let lab = Lab::boot(&Profile::named("edu-eight-ports")?, "bench-regroup")?;
    for endpoint in ENDPOINTS {
        lab.bind_vfio(endpoint)?;
    }
    let free = measure(&lab, rounds, "no VM has them")?;
    let vm = (1..)
        .zip(ENDPOINTS)
        .fold(Vm::new("sh"), |vm, (n, endpoint)| {
            vm.device_option(&format!("path=/sys/bus/pci/devices/{endpoint},id=e{n}"))
        });
    let live = Live::boot_vm(&lab, &vm);
    let daemon = Daemon::start(&lab, &["web"]);
    let plugged = measure(&lab, rounds, "a guest has them")?;
    daemon.stop();
    drop(live);

    let mut text = String::from("| what | seen | lowest and highest round |\n|---|---|---|\n");
    for (what, mut ratios) in [
        ("joined, no VM has them", free.joined),
        ("isolated, no VM has them", free.isolated),
        ("joined, a running guest has them", plugged.joined),
        ("isolated, a running guest has them", plugged.isolated),
    ] {
        ratios.sort_by(f64::total_cmp);
        let middle = ratios.get(ratios.len() / 2);
        if let (Some(low), Some(middle), Some(high)) = (ratios.first(), middle, ratios.last()) {
            writeln!(
                text,
                "| eight endpoints {what}: one transaction by seven | {middle:.2} | {low:.2} – {high:.2} |"
            )?;
        }
    }
    Ok(text)
}

/// All at once and one after the other, there and back, within each round.
fn measure(lab: &Lab, rounds: u8, who: &str) -> Result<Ratios> {
    let mut ratios = Ratios::default();
    for round in 1..=rounds {
        let join = apply(lab, "--join", &ENDPOINTS)?;
        let isolate = apply(lab, "--isolate", &ENDPOINTS)?;
        let mut joins = Duration::ZERO;
        for count in 2..=ENDPOINTS.len() {
            let (set, _) = ENDPOINTS.split_at(count);
            joins += apply(lab, "--join", set)?;
        }
        let mut isolates = Duration::ZERO;
        // The last is alone then.
        for endpoint in ENDPOINTS.iter().skip(1) {
            isolates += apply(lab, "--isolate", &[endpoint])?;
        }
        let [join, isolate, joins, isolates] =
            [join, isolate, joins, isolates].map(|time| time.as_secs_f64());
        eprintln!(
            "bench: regroup, {who}, round {round} of {rounds}: joined in {join:.1} s, by one after the other {joins:.1} s; \
             isolated in {isolate:.1} s, {isolates:.1} s"
        );
        ratios.joined.push(join / joins);
        ratios.isolated.push(isolate / isolates);
    }
    Ok(ratios)
}

/// Has something done with these, and says how long that took. The switch has no ACS: that Linux alone keeps apart what is
/// isolated has to be accepted, and who is with whom on the way.
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
