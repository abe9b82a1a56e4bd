//! How a VMM fares with a drive beside others with the same drive and guest: QEMU, and cloud-hypervisor where there is
//! one.

mod ioctls;
mod vmm;

use std::fmt::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::{CloudHypervisor, Lab, Profile};

use ioctls::Ioctls;
use vmm::{Guest, MEMORY_KB, Vmm};

const DRIVE: &str = "0000:03:00.0";
/// In the same group, and so bound to vfio-pci as well.
const NEIGHBOUR: &str = "0000:04:00.0";
/// Comings and goings within a round, of which the middle one counts.
const CYCLES: usize = 5;

/// How long one coming or going may take in an emulated host.
const STEP: Duration = Duration::from_secs(120);

/// What was seen of a VMM in one round.
#[derive(Debug, Clone, Copy)]
struct Seen {
    /// From the start of the process to the guest's first program, with two drives; seconds.
    start: f64,
    /// Memory in use then beyond the guest's; KiB.
    memory: f64,
    /// A drive that comes and goes.
    alone: Visits,
    /// The same as a peer, of a VMM that makes a difference.
    peer: Option<Visits>,
}

/// What was seen of a drive that comes and goes.
#[derive(Debug, Clone, Copy)]
struct Visits {
    /// Medians of coming and going; seconds.
    add: f64,
    remove: f64,
    /// From the call until the guest has the drive; `None` if the host cannot count.
    ioctls: Option<Ioctls>,
}

impl Seen {
    fn as_peer(&self) -> Visits {
        self.peer.unwrap_or(self.alone)
    }
}

/// A line of the table.
struct Row {
    what: &'static str,
    of: fn(&Seen) -> Option<f64>,
    /// What the ratios to QEMU and to cloud-hypervisor shall be at most.
    goals: [Option<f64>; 2],
}

const ROWS: [Row; 8] = [
    Row {
        what: "from the start until the guest runs a program, with two drives",
        of: |seen| Some(seen.start),
        goals: [Some(0.5), Some(0.8)],
    },
    Row {
        what: "memory in use then, beyond the guest's",
        of: |seen| Some(seen.memory),
        goals: [None, Some(0.5)],
    },
    Row {
        what: "from the call until the guest has the drive",
        of: |seen| Some(seen.alone.add),
        goals: [None, Some(1.0)],
    },
    Row {
        what: "from the call until the host can have the drive",
        of: |seen| Some(seen.alone.remove),
        goals: [None, Some(1.0)],
    },
    Row {
        what: "until the guest has the drive, as a peer below a switch that comes with it",
        of: |seen| Some(seen.as_peer().add),
        goals: [None, None],
    },
    Row {
        what: "until the host can have that drive",
        of: |seen| Some(seen.as_peer().remove),
        goals: [None, None],
    },
    Row {
        what: "ioctls of VFIO until the guest has the drive",
        of: |seen| Some(seen.alone.ioctls?.vfio.into()),
        goals: [None, None],
    },
    Row {
        what: "ioctls of KVM until the guest has the drive",
        of: |seen| Some(seen.alone.ioctls?.kvm.into()),
        goals: [None, None],
    },
];

/// Measures, and says what was seen as lines of a table.
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
    let mut rounds_seen = Vec::new();
    for round in 1..=rounds {
        eprintln!("bench: hotplug, round {round} of {rounds}");
        let measure = |name: &str, vmm: &Vmm| -> Result<Seen> {
            let seen = measure(&lab, vmm, group).with_context(|| format!("with {name}"))?;
            eprintln!("bench: {name}: {seen:.2?}");
            Ok(seen)
        };
        let theirs = others.iter().map(|(name, vmm)| measure(name, vmm));
        let theirs = theirs.collect::<Result<Vec<_>>>()?;
        rounds_seen.push((measure("p2p-vmm", &Vmm::Ours)?, theirs));
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
            let ratios = rounds_seen
                .iter()
                .filter_map(|(ours, theirs)| Some((row.of)(ours)? / (row.of)(theirs.get(at)?)?));
            line(&mut text, (row.what, name, goal), ratios.collect())?;
        }
    }
    for (what, of) in [
        ("a drive", (|seen| seen.alone) as fn(&Seen) -> Visits),
        ("a peer", Seen::as_peer),
    ] {
        let maps = rounds_seen
            .iter()
            .filter_map(|(ours, _)| Some(of(ours).ioctls?.maps.into()));
        let what = format!("calls that map memory and BARs for {what} that comes, in number");
        line(&mut text, (&what, "", None), maps.collect())?;
    }
    Ok(text)
}

/// A line of the table, of ratios in any order.
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

/// Starts a guest with two drives, then one without and lets a drive come and go.
fn measure(lab: &Lab, vmm: &Vmm, group: u32) -> Result<Seen> {
    let started = Instant::now();
    let guest = Guest::boot(lab, vmm, &[DRIVE, NEIGHBOUR])?;
    let start = started.elapsed();
    // Devices reach all of the guest's memory, so all of it is in use.
    let resident = guest.resident_kb()?;
    guest.end()?;
    let mut guest = Guest::boot(lab, vmm, &[])?;
    let mut visits = |first: usize, p2p: bool| -> Result<Visits> {
        let (mut adds, mut removes) = (Vec::new(), Vec::new());
        for number in first..first + CYCLES {
            let started = Instant::now();
            lab.sh(&vmm.add(DRIVE, p2p))?;
            guest.wait_for(&format!("came {number}"), STEP)?;
            adds.push(started.elapsed());
            removes.push(leave(lab, vmm, group)?);
            guest.wait_for(&format!("went {number}"), STEP)?;
        }
        // In a cycle of its own: what is counted takes longer.
        let number = first + CYCLES;
        let ioctls = ioctls::counted(lab, || {
            lab.sh(&vmm.add(DRIVE, p2p))?;
            guest.wait_for(&format!("came {number}"), STEP)
        })?;
        leave(lab, vmm, group)?;
        guest.wait_for(&format!("went {number}"), STEP)?;
        Ok(Visits {
            add: middle(adds),
            remove: middle(removes),
            ioctls,
        })
    };
    let alone = visits(0, false)?;
    let peer = match vmm {
        Vmm::Ours => Some(visits(CYCLES + 1, true)?),
        Vmm::Qemu(_) | Vmm::CloudHypervisor => None,
    };
    guest.end()?;
    Ok(Seen {
        start: start.as_secs_f64(),
        memory: f64::from(resident.saturating_sub(MEMORY_KB)),
        alone,
        peer,
    })
}

/// How long it takes from the call until the host can have the drive.
fn leave(lab: &Lab, vmm: &Vmm, group: u32) -> Result<Duration> {
    let started = Instant::now();
    // A group has one user at most: as soon as it can be opened, the VMM has let go of the drive.
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
    fn the_middle_round_counts_against_the_goal() {
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
