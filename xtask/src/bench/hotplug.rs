//! Boot and hotplug of p2p-vmm compared with other VMMs, with the same drive and guest: QEMU, and cloud-hypervisor if
//! `CH_BIN` is set.

mod ioctls;
mod vmm;

use std::fmt::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::{CloudHypervisor, Lab, Profile};

use ioctls::Ioctls;
use vmm::{Guest, MEMORY_KB, Vmm};

const DRIVE: &str = "0000:03:00.0";
/// A drive in the same group, which must be bound to vfio-pci too.
const NEIGHBOUR: &str = "0000:04:00.0";
/// Add and remove cycles within a round; the median counts.
const CYCLES: usize = 5;

/// Timeout for one add or remove in an emulated host.
const STEP: Duration = Duration::from_secs(120);

/// Measurements of a VMM in one round.
#[derive(Debug, Clone, Copy)]
struct Measured {
    /// From the start of the process to the guest's first program, with two drives; seconds.
    start: f64,
    /// Resident memory then, without the guest's memory; KiB.
    memory: f64,
    /// Hotplug of an unshared drive.
    alone: HotplugTimes,
    /// Hotplug of a drive with P2P, of a VMM that has P2P domains.
    peer: Option<HotplugTimes>,
}

/// Measurements of the hotplug of a drive.
#[derive(Debug, Clone, Copy)]
struct HotplugTimes {
    /// Medians of add and remove; seconds.
    add: f64,
    remove: f64,
    /// Ioctls from the call until the guest has the drive; `None` if the host cannot count them.
    ioctls: Option<Ioctls>,
}

impl Measured {
    fn as_peer(&self) -> HotplugTimes {
        self.peer.unwrap_or(self.alone)
    }
}

/// A row of the table.
struct Row {
    what: &'static str,
    of: fn(&Measured) -> Option<f64>,
    /// Upper bounds for the ratios to QEMU and to cloud-hypervisor.
    goals: [Option<f64>; 2],
}

const ROWS: [Row; 8] = [
    Row {
        what: "from the start until the guest runs a program, with two drives",
        of: |measured| Some(measured.start),
        goals: [Some(0.5), Some(0.8)],
    },
    Row {
        what: "memory in use then, beyond the guest's",
        of: |measured| Some(measured.memory),
        goals: [None, Some(0.5)],
    },
    Row {
        what: "from the call until the guest has the drive",
        of: |measured| Some(measured.alone.add),
        goals: [None, Some(1.0)],
    },
    Row {
        what: "from the call until the host can have the drive",
        of: |measured| Some(measured.alone.remove),
        goals: [None, Some(1.0)],
    },
    Row {
        what: "until the guest has the drive, as a peer below a switch that comes with it",
        of: |measured| Some(measured.as_peer().add),
        goals: [None, None],
    },
    Row {
        what: "until the host can have that drive",
        of: |measured| Some(measured.as_peer().remove),
        goals: [None, None],
    },
    Row {
        what: "ioctls of VFIO until the guest has the drive",
        of: |measured| Some(measured.alone.ioctls?.vfio.into()),
        goals: [None, None],
    },
    Row {
        what: "ioctls of KVM until the guest has the drive",
        of: |measured| Some(measured.alone.ioctls?.kvm.into()),
        goals: [None, None],
    },
];

/// Measures, and returns the table.
pub(crate) fn run(rounds: u8) -> Result<String> {
    let ours = lab::released("p2p-vmm", "p2p-vmm")?;
    let lab = Lab::boot(&Profile::named("nvme-one-group")?, "bench-hotplug")?;
    for function in [DRIVE, NEIGHBOUR] {
        lab.bind_vfio(function)?;
    }
    lab.put(&ours, vmm::OURS)?;
    let group = lab.group(DRIVE)?;
    let mut others = vec![("QEMU", Vmm::Qemu(lab.put_qemu()?))];
    if let Ok(programs) = CloudHypervisor::given() {
        programs.put(&lab)?;
        others.push(("cloud-hypervisor", Vmm::CloudHypervisor));
    }
    let mut measured_rounds = Vec::new();
    for round in 1..=rounds {
        eprintln!("bench: hotplug, round {round} of {rounds}");
        let measure = |name: &str, vmm: &Vmm| -> Result<Measured> {
            let measured = measure(&lab, vmm, group).with_context(|| format!("with {name}"))?;
            eprintln!("bench: {name}: {measured:.2?}");
            Ok(measured)
        };
        let theirs = others.iter().map(|(name, vmm)| measure(name, vmm));
        let theirs = theirs.collect::<Result<Vec<_>>>()?;
        measured_rounds.push((measure("p2p-vmm", &Vmm::Ours)?, theirs));
    }
    let mut text = String::from(
        "| what | by | seen | lowest and highest round | goal | |\n|---|---|---|---|---|---|\n",
    );
    for row in &ROWS {
        for (at, (name, goal)) in ["QEMU", "cloud-hypervisor"]
            .iter()
            .zip(row.goals)
            .enumerate()
        {
            let ratios = measured_rounds
                .iter()
                .filter_map(|(ours, theirs)| Some((row.of)(ours)? / (row.of)(theirs.get(at)?)?));
            line(&mut text, (row.what, name, goal), ratios.collect())?;
        }
    }
    for (what, of) in [
        (
            "a drive",
            (|measured| measured.alone) as fn(&Measured) -> HotplugTimes,
        ),
        ("a peer", Measured::as_peer),
    ] {
        let maps = measured_rounds
            .iter()
            .filter_map(|(ours, _)| Some(of(ours).ioctls?.maps.into()));
        let what = format!("calls that map memory and BARs for {what} that comes, in number");
        // Guest memory once, and at most two calls for the drive's BAR in its context.
        line(&mut text, (&what, "", Some(3.0)), maps.collect())?;
    }
    Ok(text)
}

/// A row of the table from unsorted ratios.
fn line(
    text: &mut String,
    (what, by, goal): (&str, &str, Option<f64>),
    mut ratios: Vec<f64>,
) -> Result<()> {
    ratios.sort_by(f64::total_cmp);
    let wanted = goal.map(|goal| goal.to_string()).unwrap_or_default();
    let middle = ratios.get(ratios.len() / 2);
    let (Some(low), Some(middle), Some(high)) = (ratios.first(), middle, ratios.last()) else {
        writeln!(text, "| {what} | {by} | SKIPPED | | {wanted} | |")?;
        return Ok(());
    };
    let verdict = match goal {
        None => "",
        Some(goal) if *middle <= goal => "met",
        Some(_) => "MISSED",
    };
    writeln!(
        text,
        "| {what} | {by} | {middle:.2} | {low:.2} – {high:.2} | {wanted} | {verdict} |"
    )?;
    Ok(())
}

/// Boots a guest with two drives, then one without drives, and adds and removes a drive.
fn measure(lab: &Lab, vmm: &Vmm, group: u32) -> Result<Measured> {
    let started = Instant::now();
    let guest = Guest::boot(lab, vmm, &[DRIVE, NEIGHBOUR])?;
    let start = started.elapsed();
    // Guest memory is pinned for the devices, so all of it is resident.
    let resident = guest.resident_kb()?;
    guest.end()?;
    let mut guest = Guest::boot(lab, vmm, &[])?;
    let mut hotplug = |first: usize, p2p: bool| -> Result<HotplugTimes> {
        let (mut adds, mut removes) = (Vec::new(), Vec::new());
        for number in first..first + CYCLES {
            let started = Instant::now();
            lab.sh(&vmm.add(DRIVE, p2p))?;
            guest.wait_for(&format!("came {number}"), STEP)?;
            adds.push(started.elapsed());
            removes.push(remove(lab, vmm, group)?);
            guest.wait_for(&format!("went {number}"), STEP)?;
        }
        // In a separate cycle, because counting slows it down.
        let number = first + CYCLES;
        let ioctls = ioctls::counted(lab, || {
            lab.sh(&vmm.add(DRIVE, p2p))?;
            guest.wait_for(&format!("came {number}"), STEP)
        })?;
        remove(lab, vmm, group)?;
        guest.wait_for(&format!("went {number}"), STEP)?;
        Ok(HotplugTimes {
            add: middle(adds),
            remove: middle(removes),
            ioctls,
        })
    };
    let alone = hotplug(0, false)?;
    let peer = match vmm {
        Vmm::Ours => Some(hotplug(CYCLES + 1, true)?),
        Vmm::Qemu(_) | Vmm::CloudHypervisor => None,
    };
    guest.end()?;
    Ok(Measured {
        start: start.as_secs_f64(),
        memory: f64::from(resident.saturating_sub(MEMORY_KB)),
        alone,
        peer,
    })
}

/// Removes the drive. Returns the time from the call until the host can open it.
fn remove(lab: &Lab, vmm: &Vmm, group: u32) -> Result<Duration> {
    let started = Instant::now();
    // A group has at most one user: when it can be opened, the VMM has released the drive.
    let free = format!("until true 2>/dev/null 3</dev/vfio/{group}; do usleep 1000; done");
    let output = lab
        .command(["sh", "-c", &format!("{} && {free}", vmm.remove())])
        .deadline(STEP)
        .run()?;
    ensure!(output.code() == Some(0), "{output:?}");
    Ok(started.elapsed())
}

/// The median, in seconds.
fn middle(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    let middle = times.get(times.len() / 2).copied().unwrap_or_default();
    middle.as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_compared_with_the_goal() {
        let mut text = String::new();
        line(&mut text, ("x", "QEMU", Some(0.8)), vec![0.9, 0.5, 0.7]).unwrap();
        line(&mut text, ("x", "QEMU", Some(0.6)), vec![0.7]).unwrap();
        line(&mut text, ("x", "QEMU", None), Vec::new()).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "| x | QEMU | 0.70 | 0.50 – 0.90 | 0.8 | met |");
        assert!(lines[1].ends_with("MISSED |"), "{text}");
        assert!(lines[2].contains("SKIPPED"), "{text}");
    }
}
