//! Both guests do as they are asked.

use lab::live::Live;
use lab::protocol::Exit;
use lab::report::{Finding, Outcome};
use lab::{Daemon, Lab, Work};

use crate::{DRIVES, ENGINES, apart, lab, probe, state, vm};

/// What a guest does with its engines all the while: rounds of DMA into its memory, which are counted if all arrived.
const ENGINES_AT_WORK: &str = ": > /tmp/rounds; touch /tmp/on; (while [ -e /tmp/on ]; do guest-probe > /tmp/round; \
    [ $(grep finding.:.memory /tmp/round | grep -c result.:.ok) = 2 ] && echo good >> /tmp/rounds || echo bad >> /tmp/rounds; done; \
    touch /tmp/off) > /dev/null 2>&1 & true";

/// How many rounds of DMA there were; none may be bad.
fn rounds(live: &mut Live<'_>) -> usize {
    let text = live.guest("cat /tmp/rounds");
    assert!(!text.contains("bad"), "{text}");
    text.matches("good").count()
}

/// Waits until there were more rounds than so many.
fn more_rounds(live: &mut Live<'_>, than: usize) {
    live.guest(&format!(
        "while [ $(wc -l < /tmp/rounds) -le {than} ]; do usleep 100000; done"
    ));
    assert!(rounds(live) > than);
}

/// Device by device what was asked for and what came, sorted: the guest lets go of several in any order.
fn once_each(live: &mut Live<'_>, names: &[&str]) {
    let mut news = live.news(names.len() * 3);
    news.sort();
    let mut expected = Vec::new();
    for event in ["device-added", "device-removed", "device-unplug-requested"] {
        expected.extend(
            names
                .iter()
                .map(|name| (event.to_owned(), (*name).to_owned())),
        );
    }
    assert_eq!(news, expected);
}

/// The engines of one guest aim at a bus address that an engine of the other has.
fn aim(lab: &Lab, live: &mut Live<'_>, target: &str) -> Vec<String> {
    let address = lab.bus_address(target).unwrap();
    let findings = Finding::in_console(&live.guest(&format!("guest-probe aim {address}")));
    let read = findings.into_iter().filter_map(|finding| match finding {
        Finding::Aimed { read, expected, .. } => {
            assert_ne!(read, expected);
            Some(read)
        }
        _ => None,
    });
    read.collect()
}

/// Sets and reads the registers at which others may aim.
fn liveness(live: &mut Live<'_>, words: &str) -> Vec<String> {
    let findings = Finding::in_console(&live.guest(&format!("guest-probe liveness {words}")));
    let value = findings.into_iter().filter_map(|finding| match finding {
        Finding::Liveness { value, .. } => Some(value),
        _ => None,
    });
    value.collect()
}

/// Expects the engines of one guest neither to write nor to read what an engine of the other has.
fn out_of_reach(lab: &Lab, from: &mut Live<'_>, to: &mut Live<'_>, target: &str) {
    let set = liveness(to, "0x12345678");
    assert_eq!(set, ["0xedcba987"; 2]);
    let read = aim(lab, from, target);
    assert_eq!(read.len(), 2);
    assert!(!read.contains(&set[0]), "{read:?}");
    assert_eq!(liveness(to, ""), set, "{target}");
}

/// Expects faults of these engines, and of no others, in the host's log while `aim` runs. They have room there before:
/// the kernel tells ten in five seconds (linux 7.2 drivers/iommu/intel/dmar.c: `dmar_fault`).
fn faulted(lab: &Lab, initiators: &[&str], aim: impl FnOnce()) {
    const MARK: &str = "from here on";
    lab.run(["usleep", "6000000"]).unwrap().ok().unwrap();
    lab.sh(&format!("echo {MARK} > /dev/kmsg")).unwrap();
    aim();
    let log = lab.dmesg().unwrap();
    let (_, log) = log.rsplit_once(MARK).unwrap();
    let mut faults = log.lines().filter(|line| line.contains("fault addr"));
    let own = |line: &str| initiators.iter().any(|bdf| line.contains(bdf));
    assert!(faults.clone().count() > 0, "{initiators:?}: {log}");
    assert!(faults.all(own), "{initiators:?}: {log}");
}

#[test]
fn a_change_for_one_guest_leaves_the_other_alone_and_one_for_both_is_one_transaction() {
    const NONE: [Outcome; 4] = [Outcome::Nothing; 4];
    let lab = lab();
    let [a, b, c, d, ..] = ENGINES;
    let mut web = Live::boot_vm(&lab, &vm(&[a, b], Some(DRIVES[0])));
    let mut db = Live::boot_named(&lab, "db", &vm(&[c, d], Some(DRIVES[1])));
    assert_eq!(probe(&mut web), (vec![Outcome::Ok; 2], NONE.to_vec()));
    assert_eq!(probe(&mut db), (vec![Outcome::Ok; 2], NONE.to_vec()));

    // A group has one user at a time, and a device of a guest that the daemon does not know is in use by somebody.
    let before = state(&lab);
    for (known, reasons) in [
        (
            ["web", "db"].as_slice(),
            [
                "03:00.0 (web) 05:00.0 (db) would be in one IOMMU group",
                "which only one VM can open",
            ],
        ),
        (&["web"], ["05:00.0 is in use by p2p-vmm", "shut that down"]),
    ] {
        let daemon = Daemon::start(&lab, known);
        let refused = daemon.apply(&["--join", a, c]);
        assert_eq!(refused.code(), Some(2), "{refused:?}");
        let words: Vec<&str> = refused.stdout.split_whitespace().collect();
        let told = words.join(" ");
        for word in ["nothing was changed"].iter().chain(&reasons) {
            assert!(told.contains(word), "{word}: {told}");
        }
        assert_eq!(state(&lab), before);
        daemon.stop();
    }

    let daemon = Daemon::start(&lab, &["web", "db"]);
    let mut works = [Work::start(&mut web), Work::start(&mut db)];
    db.guest(ENGINES_AT_WORK);
    more_rounds(&mut db, 0);
    let groups = [c, d].map(|bdf| lab.group(bdf).unwrap());
    daemon.apply(&["--join", a, b]).ok().unwrap();
    once_each(&mut web, &["a", "b"]);
    let during = rounds(&mut db);
    more_rounds(&mut db, during);
    assert_eq!(db.news(0), []);
    assert_eq!([c, d].map(|bdf| lab.group(bdf).unwrap()), groups);
    assert_eq!(
        web.peers(),
        [("a".to_owned(), true), ("b".to_owned(), true)]
    );
    assert_eq!(
        probe(&mut web),
        (vec![Outcome::Ok; 2], vec![Outcome::Ok; 4])
    );
    db.guest("rm /tmp/on; while ! [ -e /tmp/off ]; do usleep 50000; done");

    // Below one switch there is one group of peers at a time: one guest has them no more, and the other has them.
    let mut change = vec!["--join", c, d];
    change.extend(apart(&[a, b]));
    daemon.apply(&change).ok().unwrap();
    once_each(&mut web, &["a", "b"]);
    once_each(&mut db, &["c", "d"]);
    assert_eq!(probe(&mut web), (vec![Outcome::Ok; 2], NONE.to_vec()));
    assert_eq!(probe(&mut db), (vec![Outcome::Ok; 2], vec![Outcome::Ok; 4]));

    // Neither guest reaches what the other has, and it is the IOMMU that says so.
    let ends = [a, c].map(|bdf| lab.group(bdf).unwrap());
    assert_ne!(ends[0], ends[1]);
    faulted(&lab, &[a, b], || out_of_reach(&lab, &mut web, &mut db, c));
    faulted(&lab, &[c, d], || out_of_reach(&lab, &mut db, &mut web, a));

    daemon.apply(&apart(&[c, d])).ok().unwrap();
    once_each(&mut db, &["c", "d"]);
    assert_eq!(web.news(0), []);
    for (live, work) in [&mut web, &mut db].into_iter().zip(&mut works) {
        assert_eq!(probe(live), (vec![Outcome::Ok; 2], NONE.to_vec()));
        work.goes_on(live);
    }
    daemon.stop();
    for live in [web, db] {
        assert_eq!(live.power_off().exit, Exit::Code(0));
    }
    let log = lab.dmesg().unwrap();
    assert!(
        !log.contains("cut here") && !log.contains("Call Trace"),
        "{log}"
    );
}
