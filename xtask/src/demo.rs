//! `cargo xtask demo`: shows the project's main functions in a dozen lines, each a fact observed in the lab.

mod report;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use lab::live::Live;
use lab::report::{Finding, Outcome};
use lab::{Assets, Binaries, Daemon, Lab, Profile, Progress, Vm, Work};

use report::Report;

/// Two drives with a controller memory buffer, below one switch.
const PEERS: [&str; 2] = ["0000:03:00.0", "0000:04:00.0"];
/// A drive below another port. The guest copies a file on it during the demo.
const OTHER: &str = "0000:05:00.0";

pub(crate) fn run() -> Result<()> {
    let progress = Progress::new();
    let assets = Assets::ensure(&progress)?;
    progress.during("building the programs that go into the lab", || {
        Binaries::build(&progress)
    })?;
    let mut report = Report::begin(progress)?;
    let started = Instant::now();
    let result = run_steps(&mut report, &assets);
    let details = report.details().to_owned();
    if let Err(error) = &result {
        report.log(&format!("failed: {error:#}"))?;
    } else {
        report.fact("took", &seconds(started.elapsed()))?;
    }
    report.fact("details", &details.display().to_string())?;
    result
}

fn run_steps(report: &mut Report, assets: &Assets) -> Result<()> {
    report.fact(
        "what",
        "two NVMe drives of a running VM that get to read and write each other's memory, and lose that again",
    )?;
    let lab = boot(report, assets)?;
    matrix(report, &lab)?;
    refusal(report, &lab)?;
    let mut live = guest(report, &lab)?;
    let daemon = Daemon::start(&lab, &["web"]);
    let mut work = Work::start(&mut live);
    transfers(report, &mut live, "before", false)?;
    let [first, second] = PEERS;
    plan(report, &lab, &["--join", first, second])?;
    apply(report, &lab, &daemon, &["--join", first, second])?;
    transfers(report, &mut live, "p2p", true)?;
    work_continues(report, &mut live, &mut work)?;
    let apart = ["--isolate", first, second, "--expose", first, second];
    apply(report, &lab, &daemon, &apart)?;
    transfers(report, &mut live, "after", false)?;
    work_continues(report, &mut live, &mut work)?;
    daemon.stop();
    let output = live.power_off();
    report.log(&format!("{}{}", output.stdout, output.stderr))
}

fn boot(report: &Report, assets: &Assets) -> Result<Lab> {
    let lab = Lab::boot(&Profile::named("nvme-live")?, "demo")?;
    report.log(&lab.sh("lspci -tv; ls -d /sys/kernel/iommu_groups/*/devices/*")?)?;
    let parts = assets.describe();
    let parts: Vec<&str> = parts
        .iter()
        .take(2)
        .filter_map(|part| part.split(" (").next())
        .collect();
    report.fact(
        "host",
        &format!(
            "{}, an IOMMU, two drives below one switch and one elsewhere, up in {}",
            parts.join(", "),
            seconds(lab.boot_time())
        ),
    )?;
    for bdf in PEERS.into_iter().chain([OTHER]) {
        lab.bind_vfio(bdf)?;
    }
    groups(report, &lab, "groups", false)?;
    Ok(lab)
}

/// Shows the groups of the two drives, and checks whether they are in one group.
fn groups(report: &Report, lab: &Lab, label: &str, one: bool) -> Result<()> {
    let [first, second] = PEERS;
    let [left, right] = [lab.group(first)?, lab.group(second)?];
    ensure!(
        (left == right) == one,
        "{first} is in group {left}, {second} in group {right}"
    );
    report.fact(
        label,
        &format!("{first} in group {left}, {second} in group {right}"),
    )
}

fn matrix(report: &Report, lab: &Lab) -> Result<()> {
    let [first, second] = PEERS;
    let text = lab.run(["p2pctl", "matrix", first, second])?.ok()?;
    lines(report, "matrix", text.lines().take(3))
}

/// Shows that p2p-vmm refuses P2P between the two drives in their current groups.
fn refusal(report: &Report, lab: &Lab) -> Result<()> {
    let vm = PEERS
        .iter()
        .fold(Vm::new("true"), |vm, bdf| vm.p2p_device(bdf));
    let output = lab.vm(&vm).run()?;
    ensure!(
        output.code() == Some(2),
        "p2p-vmm should have refused with exit code 2, not: {}",
        output.exit
    );
    lines(report, "refused", output.stderr.lines())
}

fn guest<'lab>(report: &Report, lab: &'lab Lab) -> Result<Live<'lab>> {
    let vm = PEERS
        .into_iter()
        .chain([OTHER])
        .fold(Vm::new("modprobe nvme ; sh"), Vm::device);
    let started = Instant::now();
    let mut live = report
        .progress()
        .during("starting a VM with the three drives", || {
            Live::boot_vm(lab, &vm)
        });
    live.guest("dmesg -n 1");
    report.fact(
        "guest",
        &format!(
            "a VM with the three drives, none a peer, up in {}; it counts, and copies a file on the third",
            seconds(started.elapsed())
        ),
    )?;
    Ok(live)
}

/// Runs transfers from drive to drive in the guest. All must arrive if `arrive`, otherwise none.
fn transfers(report: &Report, live: &mut Live<'_>, label: &str, arrive: bool) -> Result<()> {
    let ready = "n=0; while [ $(ls /dev/nvme*n1 2>/dev/null | wc -l) -lt 3 -a $n -lt 600 ]; do usleep 100000; n=$((n+1)); done";
    let text = report.progress().during("drive to drive in the guest", || {
        live.guest(ready);
        live.guest("guest-probe p2pmem")
    });
    report.log(&text)?;
    let serials = live.guest("for d in /sys/class/nvme/*; do echo $(basename $(readlink -f $d/device)) $(cat $d/serial); done");
    let is_peer = |bdf: &str| {
        let mut lines = serials.lines().map(str::trim);
        lines.any(|line| line.starts_with(bdf) && !line.contains("work"))
    };
    let transfers = Finding::in_console(&text).into_iter();
    let found: Vec<(Outcome, Option<String>)> = transfers
        .filter_map(|finding| match finding {
            Finding::Transfer {
                memory,
                drive,
                result,
                error,
                ..
            } if is_peer(&memory) && is_peer(&drive) => Some((result, error)),
            _ => None,
        })
        .collect();
    ensure!(found.len() == 4, "{} transfers, not 4", found.len());
    let (text, arrived) = verdict(&found)?;
    ensure!(arrived == arrive, "{text}");
    report.fact(label, &text)
}

/// The common result of all transfers as text, and whether they arrived.
fn verdict(found: &[(Outcome, Option<String>)]) -> Result<(String, bool)> {
    let (first, error) = found.first().context("no transfer")?;
    let count = found.len();
    if let Some((other, _)) = found.iter().find(|(result, _)| result != first) {
        bail!("some transfers ended as {first:?}, others as {other:?}");
    }
    Ok(match first {
        Outcome::Ok => (
            format!("the guest: {count} of {count} transfers from drive to drive arrived"),
            true,
        ),
        Outcome::Nothing => (
            format!(
                "the guest's kernel refuses all {count} transfers from drive to drive: {}",
                error.as_deref().unwrap_or_default()
            ),
            false,
        ),
        Outcome::Lost => (
            format!(
                "the guest's kernel accepts all {count} transfers from drive to drive, as on any AMD Zen CPU; \
                 the IOMMU stops them, and none arrives"
            ),
            false,
        ),
        Outcome::Garbled | Outcome::TimedOut => bail!("all transfers ended as {first:?}"),
    })
}

fn plan(report: &Report, lab: &Lab, goals: &[&str]) -> Result<()> {
    let words = ["p2pctl", "plan"].iter().chain(goals);
    let text = lab.run(words.map(|word| (*word).to_owned()))?.ok()?;
    report.log(&text)?;
    let shown = text.lines().filter(|line| {
        let line = line.trim_start();
        line.starts_with("join") || line.starts_with("unplug") || line.starts_with("groups")
    });
    lines(report, "plan", shown)
}

fn apply(report: &Report, lab: &Lab, daemon: &Daemon<'_>, goals: &[&str]) -> Result<()> {
    let join = goals.first() == Some(&"--join");
    let what = if join { "join" } else { "isolate" };
    let output = report
        .progress()
        .during("p2pctl apply, on the running guest", || daemon.apply(goals));
    report.log(&format!("{}{}", output.stdout, output.stderr))?;
    let text = output.ok()?;
    let first = text.lines().next().unwrap_or_default();
    report.fact(what, first)?;
    groups(report, lab, "", join)
}

fn work_continues(report: &Report, live: &mut Live<'_>, work: &mut Work) -> Result<()> {
    let (count, longest) = work.goes_on(live);
    report.fact(
        "",
        &format!("its work went on: {count} copies, the longest took {longest}0 ms"),
    )
}

fn lines<'t>(report: &Report, label: &str, lines: impl Iterator<Item = &'t str>) -> Result<()> {
    for (number, line) in lines.filter(|line| !line.trim().is_empty()).enumerate() {
        report.fact(if number == 0 { label } else { "" }, line.trim_end())?;
    }
    Ok(())
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocked_transfers_are_recognized_on_any_cpu() {
        let all = |result, error: Option<&str>| vec![(result, error.map(str::to_owned)); 4];
        let intel = verdict(&all(Outcome::Nothing, Some("Invalid argument"))).unwrap();
        assert!(
            intel
                .0
                .ends_with("refuses all 4 transfers from drive to drive: Invalid argument")
        );
        let zen = verdict(&all(Outcome::Lost, Some("differs at byte 0"))).unwrap();
        assert!(zen.0.contains("AMD Zen") && zen.0.ends_with("none arrives"));
        assert!(!intel.1 && !zen.1);
        assert!(verdict(&all(Outcome::Ok, None)).unwrap().1);
        let mut mixed = all(Outcome::Ok, None);
        mixed[3].0 = Outcome::Lost;
        assert!(verdict(&mixed).is_err());
        assert!(verdict(&[]).is_err());
    }
}
