//! A guest whose devices come to be in one group and leave it again, on switch ports with ACS or without.

use lab::live::Live;
use lab::protocol::Exit;
use lab::report::{Finding, Outcome};
use lab::{Daemon, Lab, SharedLab, Turn, Vm, Work};

use crate::live_regroup::leftovers::Belongings;

/// The tests are in two programs, under two names: `live_regroup_acs.rs` has them on ports with ACS.
pub(crate) const ACS: bool = lab::is_acs_variant(env!("CARGO_CRATE_NAME"));

static LAB: SharedLab = SharedLab::new("nvme-live", env!("CARGO_CRATE_NAME")).with_acs(ACS);

/// What comes of transfers between drives that are no peers: the kernel of the guest refuses them, or, where it counts on the
/// root complex, the IOMMU stops them and the drives do not notice (see `nvme.rs`).
pub(crate) const APART: [Outcome; 4] = if ACS {
    [Outcome::Lost; 4]
} else {
    [Outcome::Nothing; 4]
};

pub(crate) const FIRST: &str = "0000:03:00.0";
pub(crate) const SECOND: &str = "0000:04:00.0";
/// The drive on which the guest works all the while.
const THIRD: &str = "0000:05:00.0";

/// A turn with all drives bound to vfio-pci, each in a group of its own.
pub(crate) fn lab() -> Turn<'static> {
    let lab = LAB.turn();
    for bdf in [FIRST, SECOND, THIRD] {
        lab.bind_vfio(bdf).unwrap();
    }
    lab
}

/// A running guest with the three drives, none of them a peer.
pub(crate) fn guest<'lab>(lab: &'lab Lab) -> Live<'lab> {
    let vm = [("one", FIRST), ("two", SECOND), ("work", THIRD)]
        .into_iter()
        .fold(Vm::new("modprobe nvme ; sh"), |vm, (id, bdf)| {
            vm.device_option(&format!("path=/sys/bus/pci/devices/{bdf},id={id}"))
        });
    let mut live = Live::boot_vm(lab, &vm);
    // What the kernel says would come between the words of others.
    live.guest("dmesg -n 1");
    live
}

/// Transfers between drives that have memory to offer, as the guest's kernel lets them.
pub(crate) fn transfers(live: &mut Live<'_>) -> Vec<Outcome> {
    live.guest("while [ $(ls /dev/nvme*n1 2>/dev/null | wc -l) -lt 3 ]; do usleep 100000; done");
    let third = third(live);
    let memory = "publishes no P2P memory";
    Finding::in_console(&live.guest("guest-probe p2pmem"))
        .into_iter()
        .filter_map(|finding| match finding {
            Finding::Transfer {
                error: Some(error), ..
            } if error.contains(memory) => None,
            Finding::Transfer {
                memory,
                drive,
                result,
                ..
            } => Some((memory, drive, result)),
            _ => None,
        })
        .filter(|(_, drive, _)| *drive != third)
        .map(|(_, _, result)| result)
        .collect()
}

/// Where the guest has the third drive.
fn third(live: &mut Live<'_>) -> String {
    let find = "for d in /sys/class/nvme/*; do grep -q work $d/serial && echo at $(basename $(readlink -f $d/device)); done";
    let text = live.guest(find);
    let at = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("at "));
    at.unwrap().to_owned()
}

pub(crate) fn gains_p2p_and_loses_it_again_while_its_work_goes_on() {
    let lab = lab();
    let cycles = if lab::long() { 100 } else { 2 };
    let mut live = guest(&lab);
    let daemon = Daemon::start(&lab, &["web"]);
    let mut work = Work::start(&mut live);
    assert_eq!(transfers(&mut live), APART);
    let plan = ["p2pctl", "plan", "--join", FIRST, SECOND];
    let plan = words(&lab.run(plan).unwrap().ok().unwrap());
    let lost = "web loses one (03:00.0), two (04:00.0) during the change, and gets them back as peers below one virtual switch";
    assert!(plan.contains(lost), "{plan}");
    assert!(
        plan.contains("back p2pctl plan --isolate 03:00.0 04:00.0"),
        "{plan}"
    );
    // Nobody resets what a guest has.
    let refused = daemon.reset(FIRST, "flr");
    assert_eq!(refused.code(), Some(2), "{refused:?}");
    assert!(
        words(&refused.stdout).contains("is plugged in web"),
        "{refused:?}"
    );
    let settings = lab.settings().unwrap();
    let mut warm = None;

    for cycle in 1..=cycles {
        let told = daemon.apply(&["--join", FIRST, SECOND]).ok().unwrap();
        assert!(told.contains(": done in "), "{told}");
        let away = "guests web was without one (03:00.0), two (04:00.0) for ";
        assert!(words(&told).contains(away), "{told}");
        assert_eq!(lab.group(FIRST).unwrap(), lab.group(SECOND).unwrap());
        assert_eq!(transfers(&mut live), [Outcome::Ok; 4]);
        work.goes_on(&mut live);

        let apart = ["--isolate", FIRST, SECOND, "--expose", FIRST, SECOND];
        let told = daemon.apply(&apart).ok().unwrap();
        assert!(told.contains(": done in "), "{told}");
        assert_ne!(lab.group(FIRST).unwrap(), lab.group(SECOND).unwrap());
        assert_eq!(transfers(&mut live), APART);
        let (rounds, longest) = work.goes_on(&mut live);
        eprintln!(
            "cycle {cycle} of {cycles}: {rounds} copies, the longest pause {} ms",
            longest * 10
        );
        // The first time fills caches, and leaves ports without devices as any split does.
        match &warm {
            None => warm = Some(Belongings::now(&lab, &live, &daemon)),
            Some(before) => before.are_back(&lab, &live, &daemon),
        }
        assert_eq!(lab.settings().unwrap(), settings);
    }
    for (log, of) in [
        (lab.dmesg().unwrap(), "host"),
        (live.guest("dmesg"), "guest"),
    ] {
        assert!(
            !log.contains("cut here") && !log.contains("Call Trace"),
            "{of}: {log}"
        );
    }
    assert_eq!(live.power_off().exit, Exit::Code(0));
    let done = daemon.reset(FIRST, "flr").ok().unwrap();
    assert!(done.contains("done, by flr"), "{done}");
    assert_eq!(daemon.reset(FIRST, "acpi").code(), Some(2));
    daemon.stop();
    let done = lab.run(["p2pctl", "reset", SECOND]).unwrap().ok().unwrap();
    assert!(done.contains("done, by flr"), "{done}");
}

/// A text as it is before it is broken into lines.
fn words(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ")
}

/// Where the records of the last journal start, in bytes from its start.
fn records(lab: &Lab) -> Vec<u64> {
    let last = lab.sh("ls /var/lib/p2pctl/done | tail -n 1").unwrap();
    let journal = lab
        .read(&format!("/var/lib/p2pctl/done/{}", last.trim()))
        .unwrap();
    let mut at = 0;
    let lines = journal.lines();
    lines
        .map(|line| {
            let start = at;
            at += u64::try_from(line.len()).unwrap() + 1;
            start
        })
        .collect()
}

pub(crate) fn keeps_every_device_when_the_daemon_is_killed_on_the_way() {
    let lab = lab();
    let mut live = guest(&lab);
    let guests = |live: &Live<'_>| -> [bool; 2] {
        let devices = live.peers();
        let names: Vec<&str> = devices.iter().map(|(id, _)| id.as_str()).collect();
        assert_eq!(names, ["one", "two"]);
        [devices[0].1, devices[1].1]
    };
    let apart = ["--isolate", FIRST, SECOND, "--expose", FIRST, SECOND];
    let daemon = Daemon::start(&lab, &["web"]);
    daemon.apply(&["--join", FIRST, SECOND]).ok().unwrap();
    let starts = records(&lab);
    daemon.apply(&apart).ok().unwrap();
    daemon.stop();
    let mut work = Work::start(&mut live);

    // All of them take many minutes; else a few from the first to the last.
    let step = if lab::long() { 1 } else { starts.len() / 6 };
    for (record, start) in starts.iter().enumerate().step_by(step) {
        let what = format!("killed at record {record} of {}", starts.len());
        // Before the record, or in the midst of it.
        let limit = start + if record % 2 == 0 { 0 } else { 9 };
        let doomed = Daemon::start_to_die(&lab, limit, &["web"]);
        let output = doomed.apply(&["--join", FIRST, SECOND]);
        assert_eq!(output.code(), Some(1), "{what}: {output:?}");
        doomed.wait_for_death();

        let daemon = Daemon::start(&lab, &["web"]);
        daemon.settle();
        let joined = lab.group(FIRST).unwrap() == lab.group(SECOND).unwrap();
        assert_eq!(guests(&live), [joined; 2], "{what}");
        eprintln!("{what}: {}", if joined { "new" } else { "old" });
        if joined {
            daemon.apply(&apart).ok().unwrap();
        }
        daemon.stop();
        work.goes_on(&mut live);
    }
    assert_eq!(transfers(&mut live), APART);
    assert_eq!(live.power_off().exit, Exit::Code(0));
}
