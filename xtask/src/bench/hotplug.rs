//! How long a drive takes to come to a running guest and to go again, beside QEMU with the same drive and guest.

mod vmm;

use std::fmt::Write;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use lab::{Lab, Profile};

use vmm::{Guest, Vmm};

const DRIVE: &str = "0000:03:00.0";
/// In the same group, and so bound to vfio-pci as well.
const NEIGHBOUR: &str = "0000:04:00.0";
/// Comings and goings within a round, of which the middle one counts.
const CYCLES: usize = 5;

/// How long one coming or going may take in an emulated host.
const STEP: Duration = Duration::from_secs(120);

/// Medians of one VMM in one round.
struct Times {
    add: Duration,
    remove: Duration,
}

/// Measures, and says what was seen as lines of a table.
pub(crate) fn run(rounds: u8) -> Result<String> {
    let lab = Lab::boot(&Profile::named("nvme-one-group")?, "bench-hotplug")?;
    for function in [DRIVE, NEIGHBOUR] {
        lab.bind_vfio(function)?;
    }
    let group = lab.group(DRIVE)?;
    let qemu = Vmm::Qemu(lab.put_qemu()?);
    let (mut adds, mut removes) = (Vec::new(), Vec::new());
    for round in 1..=rounds {
        eprintln!("bench: hotplug, round {round} of {rounds}");
        let theirs = measure(&lab, &qemu, group)?;
        let ours = measure(&lab, &Vmm::Ours, group)?;
        for (vmm, times) in [("QEMU", &theirs), ("p2p-vmm", &ours)] {
            let (add, remove) = (times.add.as_millis(), times.remove.as_millis());
            eprintln!("bench: {vmm}: add {add} ms, remove {remove} ms");
        }
        adds.push(ours.add.as_secs_f64() / theirs.add.as_secs_f64());
        removes.push(ours.remove.as_secs_f64() / theirs.remove.as_secs_f64());
    }
    let mut text = String::from("| what | seen | lowest and highest round |\n|---|---|---|\n");
    for (what, mut ratios) in [
        (
            "from the call until the guest has the drive, by QEMU's",
            adds,
        ),
        (
            "from the call until the host can have the drive, by QEMU's",
            removes,
        ),
    ] {
        ratios.sort_by(f64::total_cmp);
        let middle = ratios.get(ratios.len() / 2);
        if let (Some(low), Some(middle), Some(high)) = (ratios.first(), middle, ratios.last()) {
            writeln!(text, "| {what} | {middle:.2} | {low:.2} – {high:.2} |")?;
        }
    }
    Ok(text)
}

/// Boots a guest without drives and lets one come and go.
fn measure(lab: &Lab, vmm: &Vmm, group: u32) -> Result<Times> {
    let mut guest = Guest::boot(lab, vmm)?;
    let (mut adds, mut removes) = (Vec::new(), Vec::new());
    for number in 0..CYCLES {
        let started = Instant::now();
        lab.sh(&vmm.add(DRIVE))?;
        guest.wait_for(&format!("came {number}"), STEP)?;
        adds.push(started.elapsed());

        let started = Instant::now();
        // A group has one user at most: as soon as it can be opened, the VMM has let go of the drive.
        let free = format!("until true 2>/dev/null 3</dev/vfio/{group}; do usleep 1000; done");
        let output = lab
            .command(["sh", "-c", &format!("{} && {free}", vmm.remove())])
            .deadline(STEP)
            .run()?;
        ensure!(output.code() == Some(0), "{output:?}");
        removes.push(started.elapsed());
        guest.wait_for(&format!("went {number}"), STEP)?;
    }
    guest.end()?;
    let middle = |times: &mut Vec<Duration>| {
        times.sort_unstable();
        times.get(times.len() / 2).copied().unwrap_or_default()
    };
    Ok(Times {
        add: middle(&mut adds),
        remove: middle(&mut removes),
    })
}
