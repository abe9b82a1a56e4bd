//! Two devices that Linux has in different IOMMU groups.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::{Duration, Instant};

use lab::live::{API_SOCKET, Live};
use lab::protocol::Exit;
use lab::report::{Finding, Outcome};
use lab::{Lab, SharedLab, Vm};

/// Below ports with ACS: on others each would be exposed to the other, whatever their groups.
static LAB: SharedLab = SharedLab::new("edu-two-groups", "two-groups").with_acs(true);

const FIRST: &str = "0000:03:00.0";
const SECOND: &str = "0000:04:00.0";

/// How long connections may take to be closed.
const CLOSED: Duration = Duration::from_secs(60);

/// Everything a refused VMM might have touched: drivers, groups, configuration space.
fn state(lab: &Lab) -> String {
    lab.sh(
        "for d in /sys/bus/pci/devices/*; do
             echo $d $(readlink $d/driver) $(readlink $d/iommu_group) $(cat $d/enable $d/driver_override)
         done
         lspci -xxx -vvv",
    )
    .unwrap()
}

/// What the host's kernel has said of devices and of who assigns them. Of how slow its machine is it may speak at any time.
fn said(lab: &Lab) -> Vec<String> {
    let log = lab.dmesg().unwrap();
    let subjects = ["pci", "vfio", "iommu", "DMAR", "0000:"];
    let lines = log
        .lines()
        .filter(|line| subjects.iter().any(|word| line.contains(word)));
    lines.map(str::to_owned).collect()
}

#[test]
fn p2p_is_refused_before_anything_changes() {
    let lab = LAB.turn();
    for bdf in [FIRST, SECOND] {
        lab.bind_vfio(bdf).unwrap();
    }
    let (before, log) = (state(&lab), said(&lab));
    let vm = Vm::new("guest-probe 2")
        .p2p_device(FIRST)
        .p2p_device(SECOND);
    let output = lab.vm(&vm).run().unwrap();
    assert_eq!(output.exit, Exit::Code(2), "{output:#?}");
    assert_eq!(output.stdout, "", "no guest was started");
    let groups = [FIRST, SECOND].map(|bdf| format!("group {}", lab.group(bdf).unwrap()));
    assert_ne!(groups[0], groups[1]);
    for word in [FIRST, SECOND, &groups[0], &groups[1]] {
        assert!(output.stderr.contains(word), "{word}: {output:#?}");
    }
    assert_eq!(state(&lab), before);
    assert_eq!(said(&lab), log, "the host's kernel had to do something");
}

#[test]
fn a_device_of_another_group_does_not_come_to_a_running_domain() {
    let lab = LAB.turn();
    for bdf in [FIRST, SECOND] {
        lab.bind_vfio(bdf).unwrap();
    }
    let mut live = Live::boot(&lab, "");
    let (status, body) = live.add("one", FIRST, true);
    assert_eq!(status, 200, "{body}");
    live.told(&[("added", "one")]);
    live.wait_for_engines(1);
    // What the guest has found, where and with which addresses.
    let guest = "ls /sys/bus/pci/devices; cat /sys/bus/pci/devices/*/resource";
    let facts = |text: String| text.replace("/ # ", "").trim().to_owned();
    let seen = facts(live.guest(guest));
    let holdings = |live: &Live<'_>| {
        let held = live.holdings();
        (held.files, held.mappings, held.locked_kb)
    };
    let held = holdings(&live);
    let descriptors = live.open_files("/dev/vfio");
    let info = live.call("GET", "vm.info", None);
    let (before, log) = (state(&lab), said(&lab));

    for _ in 0..2 {
        let (status, body) = live.add("two", SECOND, true);
        assert_eq!(status, 409, "{body}");
        let groups = [FIRST, SECOND].map(|bdf| format!("group {}", lab.group(bdf).unwrap()));
        for word in [FIRST, SECOND, &groups[0], &groups[1], "p2pctl"] {
            assert!(body.contains(word), "{word}: {body}");
        }
        live.told(&[("add-failed", "two")]);
    }
    let words = format!("p2pctl vm add {SECOND},id=two,p2p=on --api-socket {API_SOCKET}");
    let refused = lab.run(words.split(' ')).unwrap();
    assert_eq!(refused.code(), Some(2), "{refused:#?}");
    assert!(refused.stderr.contains("p2pctl plan"), "{refused:#?}");
    live.told(&[("add-failed", "two")]);
    assert_eq!(state(&lab), before);
    assert_eq!(said(&lab), log);
    assert_eq!(live.call("GET", "vm.info", None), info);
    assert_eq!(live.open_files("/dev/vfio"), descriptors);
    // A connection that has been used may be open a moment longer.
    let started = Instant::now();
    while holdings(&live) != held && started.elapsed() < CLOSED {}
    assert_eq!(holdings(&live), held);
    assert_eq!(facts(live.guest(guest)), seen);

    // It is the wish for P2P that is refused, not the device.
    let (status, body) = live.add("two", SECOND, false);
    assert_eq!(status, 200, "{body}");
    live.told(&[("added", "two")]);
    assert_eq!(live.power_off().exit, Exit::Code(0));
}

#[test]
fn without_p2p_both_work_and_neither_reaches_the_other() {
    let lab = LAB.turn();
    for bdf in [FIRST, SECOND] {
        lab.bind_vfio(bdf).unwrap();
    }
    let vm = Vm::new("guest-probe 2").device(FIRST).device(SECOND);
    let output = lab.vm(&vm).run().unwrap();
    assert_eq!(output.exit, Exit::Code(0), "{output:#?}");
    let findings = Finding::in_console(&output.stdout);
    let results = |peers: bool| -> Vec<Outcome> {
        findings
            .iter()
            .filter_map(|finding| match finding {
                Finding::Peer { result, .. } if peers => Some(*result),
                Finding::Memory { result, .. } if !peers => Some(*result),
                _ => None,
            })
            .collect()
    };
    assert_eq!(results(false), [Outcome::Ok; 2], "{output:#?}");
    assert_eq!(results(true), [Outcome::Nothing; 4], "{output:#?}");
}
