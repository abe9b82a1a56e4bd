//! `cargo xtask demo`: the story of the project in a dozen lines, each a fact just seen.

mod story;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::protocol::Exit;
use lab::report::{Access, Finding, Outcome};
use lab::{Assets, Binaries, Lab, Output, Profile, Progress, Vm};

use story::Story;

pub(crate) fn run() -> Result<()> {
    let progress = Progress::new();
    let assets = Assets::ensure(&progress)?;
    progress.during("building the programs that go into the lab", || {
        Binaries::build(&progress)
    })?;
    let mut story = Story::begin(progress)?;
    let started = Instant::now();
    let result = tell(&mut story, &assets);
    let details = story.details().to_owned();
    if let Err(error) = &result {
        story.note(&format!("failed: {error:#}"))?;
    } else {
        story.fact("took", &format!("{:.0} s", started.elapsed().as_secs_f64()))?;
    }
    story.fact("details", &details.display().to_string())?;
    result
}

fn tell(story: &mut Story, assets: &Assets) -> Result<()> {
    story.fact(
        "what",
        "two PCIe devices in one VM that do DMA into each other",
    )?;
    refusal(story, assets)?;
    let lab = boot(story, "edu-one-group", "demo-one-group")?;
    story.fact(
        "host 2",
        &format!(
            "the same, but its root port has no ACS, up in {}",
            seconds(lab.boot_time())
        ),
    )?;
    let devices = bind(&lab)?;
    let group = lab.group(&devices[0])?;
    ensure!(
        group == lab.group(&devices[1])?,
        "the devices should be in one group"
    );
    story.fact(
        "groups",
        &format!("{} and {} share group {group}", devices[0], devices[1]),
    )?;
    off(story, &lab, &devices)?;
    on(story, &lab, &devices)
}

/// On stock hardware the two devices are in two groups: no P2P.
fn refusal(story: &mut Story, assets: &Assets) -> Result<()> {
    let lab = boot(story, "edu-two-groups", "demo-two-groups")?;
    let parts = assets.describe();
    let parts: Vec<&str> = parts
        .iter()
        .take(2)
        .filter_map(|part| part.split(" (").next())
        .collect();
    story.fact(
        "host 1",
        &format!(
            "{}, an IOMMU; two DMA engines below one switch, up in {}",
            parts.join(", "),
            seconds(lab.boot_time())
        ),
    )?;
    let devices = bind(&lab)?;
    let groups = [lab.group(&devices[0])?, lab.group(&devices[1])?];
    ensure!(
        groups[0] != groups[1],
        "the devices should be in two groups"
    );
    story.fact(
        "groups",
        &format!(
            "{} in group {}, {} in group {}",
            devices[0], groups[0], devices[1], groups[1]
        ),
    )?;
    let output = start(story, &lab, &devices, true)?;
    ensure!(
        output.exit == Exit::Code(2),
        "p2p-vmm should have refused with exit code 2, not: {}",
        output.exit
    );
    let mut lines = output.stderr.lines();
    story.fact("refused", lines.next().unwrap_or_default())?;
    for line in lines {
        story.fact("", line.trim())?;
    }
    story.fact("", "exit code 2, no guest was started")
}

/// Without `p2p=on` the devices work, but the IOMMU keeps them apart.
fn off(story: &mut Story, lab: &Lab, devices: &[String; 2]) -> Result<()> {
    lab.sh("dmesg -c")?;
    let output = start(story, lab, devices, false)?;
    ensure!(
        output.exit == Exit::Code(0),
        "the guest did not power off: {}",
        output.exit
    );
    let peers = peers(&output);
    let stopped = peers
        .iter()
        .filter(|peer| peer.result == Outcome::Nothing)
        .count();
    ensure!(
        peers.len() == 4 && stopped == 4,
        "{stopped} of {} transfers were stopped, where 4 should be",
        peers.len()
    );
    story.fact(
        "p2p off",
        "the guest: 4 of 4 transfers from device to device brought nothing",
    )?;
    let log = lab.dmesg()?;
    story.note(&log)?;
    let fault = log
        .lines()
        .find(|line| line.contains("DMAR") && line.contains("fault addr"))
        .context("the host's kernel logged no IOMMU fault")?;
    let fault = fault.split_once("DMAR: ").map_or(fault, |(_, text)| text);
    story.fact("", &format!("the host's IOMMU: {fault}"))
}

/// With `p2p=on` each device reaches the other.
fn on(story: &mut Story, lab: &Lab, devices: &[String; 2]) -> Result<()> {
    let output = start(story, lab, devices, true)?;
    ensure!(
        output.exit == Exit::Code(0),
        "the guest did not power off: {}",
        output.exit
    );
    let peers = peers(&output);
    ensure!(
        peers.len() == 4,
        "the guest tried {} transfers, where 4 should be",
        peers.len()
    );
    for (number, peer) in peers.iter().enumerate() {
        ensure!(
            peer.result == Outcome::Ok,
            "{} → {} failed: {:?}",
            peer.from,
            peer.to,
            peer.result
        );
        let label = if number == 0 { "p2p on" } else { "" };
        // The register that the probe uses stores the inverse of what is written to it.
        let text = match peer.access {
            Access::Write => format!(
                "the guest: {} wrote {} into {}, which then held the inverse {}   OK",
                peer.from, peer.wrote, peer.to, peer.read
            ),
            Access::Read => format!(
                "the guest: {} read {} out of {}   OK",
                peer.from, peer.read, peer.to
            ),
        };
        story.fact(label, &text)?;
    }
    Ok(())
}

fn boot(story: &Story, profile: &str, name: &str) -> Result<Lab> {
    let lab = Lab::boot(&Profile::named(profile)?, name)?;
    story.note(&format!(
        "booted {profile}, logs in {}",
        lab.dir().display()
    ))?;
    story.note(&lab.sh("lspci -tv; ls -d /sys/kernel/iommu_groups/*/devices/*")?)?;
    Ok(lab)
}

/// The two DMA engines, given to vfio-pci.
fn bind(lab: &Lab) -> Result<[String; 2]> {
    let devices = lab.find_devices("1234:11e8")?;
    for bdf in &devices {
        lab.bind_vfio(bdf)?;
    }
    <[String; 2]>::try_from(devices)
        .map_err(|found| anyhow::anyhow!("two DMA engines should be there, not {found:?}"))
}

fn start(story: &Story, lab: &Lab, devices: &[String; 2], p2p: bool) -> Result<Output> {
    let vm = devices.iter().fold(Vm::new("guest-probe 2"), |vm, bdf| {
        if p2p {
            vm.p2p_device(bdf)
        } else {
            vm.device(bdf)
        }
    });
    let what = if p2p {
        "starting a VM with p2p=on"
    } else {
        "starting a VM without p2p"
    };
    let output = story.progress().during(what, || lab.vm(&vm).run())?;
    story.note(&format!(
        "{}\n{}{}{}",
        output.argv.join(" "),
        output.stdout,
        output.stderr,
        output.exit
    ))?;
    Ok(output)
}

/// A transfer between two devices, as the guest reported it.
struct Peer {
    from: String,
    to: String,
    access: Access,
    result: Outcome,
    wrote: String,
    read: String,
}

fn peers(output: &Output) -> Vec<Peer> {
    Finding::in_console(&output.stdout)
        .into_iter()
        .filter_map(|finding| match finding {
            Finding::Peer {
                initiator,
                target,
                access,
                result,
                wrote,
                read,
                ..
            } => Some(Peer {
                from: initiator,
                to: target,
                access,
                result,
                wrote,
                read,
            }),
            _ => None,
        })
        .collect()
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}
