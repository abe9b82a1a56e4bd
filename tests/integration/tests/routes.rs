//! Peers of running guests on each route that a switch with ACS has: every transfer goes the announced way, and nobody
//! else is reached.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use lab::live::{Live, PATIENCE};
use lab::protocol::Exit;
use lab::report::{Finding, Outcome};
use lab::{Daemon, Lab, SharedLab, Vm, Way};

static LAB: SharedLab = SharedLab::new("endpoints", "routes");

/// With ATS, of one guest.
const A: &str = "0000:03:00.0";
const B: &str = "0000:04:00.0";
/// Without ATS, of another guest.
const C: &str = "0000:05:00.0";
const D: &str = "0000:06:00.0";
/// With ATS, of the guest that has A and B, but no peer of theirs.
const E: &str = "0000:07:00.0";
/// Of the host.
const F: &str = "0000:08:00.0";

/// Where an endpoint records what arrives, from the start of its BAR 0.
const MAILBOX: u64 = 0x8000;

fn vm(devices: &[(&str, &str)]) -> Vm {
    let vm = Vm::new("sh").kernel_words("loglevel=1");
    devices.iter().fold(vm, |vm, (id, bdf)| {
        vm.device_option(&format!("path=/sys/bus/pci/devices/{bdf},id={id}"))
    })
}

/// Waits until so many endpoints are in the guest.
fn wait_for(live: &mut Live<'_>, count: usize) {
    let started = Instant::now();
    while !live
        .guest("grep -l 0x10f0 /sys/bus/pci/devices/*/device | wc -l")
        .contains(&format!("\n{count}"))
    {
        assert!(started.elapsed() < PATIENCE, "no {count} endpoints");
    }
}

/// Between how many pairs of a guest's endpoints transfers arrive, in both directions, writes and reads alike. Between all
/// others nothing must arrive.
fn peers(live: &mut Live<'_>, mode: &str) -> usize {
    let console = live.guest(&format!("guest-probe peers {mode}"));
    let mut arrived: BTreeMap<(String, String), usize> = BTreeMap::new();
    for finding in Finding::in_console(&console) {
        let Finding::Peer {
            initiator,
            target,
            result,
            ..
        } = finding
        else {
            continue;
        };
        let pair = arrived.entry((initiator.clone().min(target.clone()), initiator.max(target)));
        let count = pair.or_default();
        match result {
            Outcome::Ok => *count += 1,
            Outcome::Nothing => {}
            other => panic!("{other:?} in {console}"),
        }
    }
    assert!(!arrived.is_empty(), "{console}");
    assert!(
        arrived.values().all(|count| matches!(count, 0 | 4)),
        "{arrived:?} in {console}"
    );
    arrived.values().filter(|count| **count == 4).count()
}

/// The ways that requests of these functions have taken since so many requests, and whether they were translated.
fn ways(lab: &Lab, since: usize, from: &[&str]) -> BTreeSet<(Way, bool)> {
    let trace = lab.trace().unwrap();
    let from: Vec<_> = from.iter().map(|bdf| bdf.parse().unwrap()).collect();
    let new = trace.iter().skip(since);
    let own = new.filter(|request| from.contains(&request.from));
    own.map(|request| (request.way, request.translated))
        .collect()
}

fn mailbox(lab: &Lab, bdf: &str) -> u64 {
    let bar0 = lab.bus_address(bdf).unwrap();
    u64::from_str_radix(bar0.trim_start_matches("0x"), 16).unwrap() + MAILBOX
}

/// Expects that nothing which the endpoints of a guest send reaches these, which another guest or the host has.
fn out_of_reach(
    lab: &Lab,
    from: &mut Live<'_>,
    targets: &[&str],
    arrivals: &mut dyn FnMut() -> String,
) {
    arrivals();
    for target in targets {
        for mode in ["plain", "translated"] {
            let address = mailbox(lab, target);
            from.guest(&format!("guest-probe send {address:#x} {mode}"));
        }
    }
    let values: Vec<String> = Finding::in_console(&arrivals())
        .into_iter()
        .filter_map(|finding| match finding {
            Finding::Liveness { value, .. } => Some(value),
            _ => None,
        })
        .collect();
    assert!(
        !values.is_empty() && values.iter().all(|value| value == "0"),
        "{values:?}"
    );
}

#[test]
fn each_transfer_goes_the_announced_way_and_neighbours_stay_out_of_reach() {
    let lab = LAB.turn();
    for bdf in [A, B, C, D, E] {
        lab.bind_vfio(bdf).unwrap();
    }
    let mut web = Live::boot_vm(&lab, &vm(&[("a", A), ("b", B), ("e", E)]));
    let mut db = Live::boot_named(&lab, "db", &vm(&[("c", C), ("d", D)]));
    let daemon = Daemon::start(&lab, &["web", "db"]);
    let since = |lab: &Lab| lab.trace().unwrap().len();

    // No peers: all that they send goes to the IOMMU, which knows nothing of it.
    wait_for(&mut web, 3);
    wait_for(&mut db, 2);
    let start = since(&lab);
    assert_eq!(peers(&mut web, "plain"), 0);
    assert_eq!(peers(&mut db, "plain"), 0);
    assert_eq!(
        ways(&lab, start, &[A, B, C, D, E]),
        BTreeSet::from([(Way::Up, false)])
    );

    // Through the IOMMU.
    daemon
        .apply(&["--join", A, B, "--route", "iommu"])
        .ok()
        .unwrap();
    wait_for(&mut web, 3);
    let start = since(&lab);
    assert_eq!(peers(&mut web, "plain"), 1);
    assert_eq!(
        ways(&lab, start, &[A, B]),
        BTreeSet::from([(Way::Up, false)])
    );
    let host = || {
        lab.run(["guest-probe", "arrivals", F])
            .unwrap()
            .ok()
            .unwrap()
    };
    out_of_reach(&lab, &mut web, &[C, D], &mut || {
        db.guest("guest-probe arrivals")
    });
    out_of_reach(&lab, &mut web, &[F], &mut || host());

    // Straight, with addresses that the IOMMU has translated before.
    daemon.apply(&["--isolate", A, B]).ok().unwrap();
    daemon
        .apply(&["--join", A, B, "--route", "direct"])
        .ok()
        .unwrap();
    wait_for(&mut web, 3);
    let start = since(&lab);
    assert_eq!(peers(&mut web, "translated"), 1);
    assert_eq!(
        ways(&lab, start, &[A, B]),
        BTreeSet::from([(Way::Straight, true)])
    );
    let start = since(&lab);
    assert_eq!(peers(&mut web, "plain"), 1);
    assert_eq!(
        ways(&lab, start, &[A, B]),
        BTreeSet::from([(Way::Up, false)])
    );
    out_of_reach(&lab, &mut web, &[C, D], &mut || {
        db.guest("guest-probe arrivals")
    });
    out_of_reach(&lab, &mut web, &[F], &mut || host());

    // Straight by egress control, which opens the ports of the two to each other only.
    daemon.apply(&["--isolate", A, B]).ok().unwrap();
    daemon
        .apply(&["--join", C, D, "--route", "direct"])
        .ok()
        .unwrap();
    wait_for(&mut db, 2);
    let start = since(&lab);
    assert_eq!(peers(&mut db, "plain"), 1);
    assert_eq!(
        ways(&lab, start, &[C, D]),
        BTreeSet::from([(Way::Straight, false)])
    );
    out_of_reach(&lab, &mut db, &[A, B, E], &mut || {
        web.guest("guest-probe arrivals")
    });
    out_of_reach(&lab, &mut db, &[F], &mut || host());
    out_of_reach(&lab, &mut web, &[C, D], &mut || {
        db.guest("guest-probe arrivals")
    });

    daemon.apply(&["--isolate", C, D]).ok().unwrap();
    wait_for(&mut db, 2);
    assert_eq!(peers(&mut db, "plain"), 0);
    daemon.stop();
    for live in [web, db] {
        assert_eq!(live.power_off().exit, Exit::Code(0));
    }
}
