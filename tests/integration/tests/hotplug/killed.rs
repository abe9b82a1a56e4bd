//! A VMM that is killed while devices come and go: the kernel gives everything back.

use lab::Lab;
use lab::live::{API_SOCKET, Live};
use lab::protocol::Exit;
use lab::report::Outcome;
use serde_json::json;

use crate::{FIRST, SECOND, add_both, lab, soft, transfers};

/// From the call to the kill, in milliseconds. Attaching and letting go both take some hundred in the lab.
const MOMENTS_MS: [u32; 5] = [0, 40, 120, 300, 800];

/// Words in the kernel's log that mean that something is wrong.
const COMPLAINTS: [&str; 7] = [
    "BUG",
    "WARNING",
    "Oops",
    "Call Trace",
    "fault addr",
    "refcount",
    "blocked for more",
];

/// Starts calls and kills the VMM so many milliseconds later.
fn kill_during(lab: &Lab, calls: &[String], moment_ms: u32) {
    let calls: String = calls.iter().map(|call| format!("{call} & ")).collect();
    lab.sh(&format!(
        "pid=$(pidof p2p-vmm); {{ {calls} }} >/dev/null 2>&1; usleep {}; kill -9 $pid; wait",
        moment_ms * 1000
    ))
    .unwrap();
}

/// The host has everything as before: both drives work with its own driver, and its kernel has nothing to complain about.
fn assert_clean(lab: &Lab, groups: &[(u32, Vec<String>)], when: &str) {
    for bdf in [FIRST, SECOND] {
        lab.bind(bdf, "nvme").unwrap();
    }
    lab.sh("while ! [ -b /dev/nvme0n1 -a -b /dev/nvme1n1 ]; do usleep 50000; done")
        .unwrap();
    let read = "for d in /dev/nvme?n1; do dd if=$d of=/dev/null bs=4096 count=1 iflag=direct || exit 1; done";
    lab.sh(read).unwrap();
    for bdf in [FIRST, SECOND] {
        lab.bind_vfio(bdf).unwrap();
    }
    assert_eq!(lab.groups().unwrap(), groups, "{when}");
    let log = lab.sh("dmesg -c").unwrap();
    let bad = log
        .lines()
        .find(|line| COMPLAINTS.iter().any(|word| line.contains(word)));
    assert_eq!(bad, None, "{when}:\n{log}");
}

fn call(name: &str, body: &serde_json::Value) -> String {
    format!("vm-call {API_SOCKET} PUT {name} '{body}'")
}

#[test]
fn a_vmm_killed_while_it_attaches_leaves_a_clean_host() {
    let lab = lab();
    lab.sh("dmesg -c").unwrap();
    let groups = lab.groups().unwrap();
    let add = |id: &str, bdf: &str| {
        let path = format!("/sys/bus/pci/devices/{bdf}");
        call(
            "vm.add-device",
            &json!({"id": id, "path": path, "p2p": true}),
        )
    };
    let calls = [add("one", FIRST), add("two", SECOND)];
    for moment_ms in MOMENTS_MS {
        let live = Live::start(&lab, "");
        kill_during(&lab, &calls, moment_ms);
        assert_eq!(live.end().exit, Exit::Signal(9));
        assert_clean(&lab, &groups, &format!("attaching, {moment_ms} ms"));
    }
}

#[test]
fn a_vmm_killed_while_the_guest_lets_go_leaves_a_clean_host() {
    let lab = lab();
    lab.sh("dmesg -c").unwrap();
    let groups = lab.groups().unwrap();
    let remove = |id: &str| call("vm.remove-device", &soft(id));
    let calls = [remove("one"), remove("two")];
    for moment_ms in MOMENTS_MS.into_iter().skip(1).step_by(2) {
        let mut live = Live::boot(&lab, "");
        add_both(&mut live);
        kill_during(&lab, &calls, moment_ms);
        assert_eq!(live.end().exit, Exit::Signal(9));
        assert_clean(&lab, &groups, &format!("letting go, {moment_ms} ms"));
    }
    let mut live = Live::boot(&lab, "");
    add_both(&mut live);
    assert_eq!(transfers(&mut live), [Outcome::Ok; 4]);
}
