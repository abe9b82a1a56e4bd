//! Devices that come to a running guest and go again.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod hotplug {
    mod button;
    mod enumerating;
    mod killed;
    mod paused;
    mod uncooperative;
}

use std::time::{Duration, Instant};

use lab::live::{API_SOCKET, Live, PATIENCE};
use lab::protocol::Exit;
use lab::report::{Finding, Outcome};
use lab::{SharedLab, Turn};
use serde_json::{Value, json};

static LAB: SharedLab = SharedLab::new("nvme-one-group", "hotplug");

const FIRST: &str = "0000:03:00.0";
const SECOND: &str = "0000:04:00.0";

fn lab() -> Turn<'static> {
    let lab = LAB.turn();
    for bdf in [FIRST, SECOND] {
        lab.bind_vfio(bdf).unwrap();
    }
    lab
}

/// A removal that gives a guest under emulation the time that it needs.
fn soft(id: &str) -> Value {
    json!({"id": id, "timeout_ms": 120_000})
}

/// Adds both drives, which are told about as added.
fn add_both(live: &mut Live<'_>) {
    live.add_drives([("one", FIRST), ("two", SECOND)]);
}

/// Results of each drive reading into and writing from the memory of the other.
fn transfers(live: &mut Live<'_>) -> Vec<Outcome> {
    Finding::in_console(&live.guest("guest-probe p2pmem"))
        .into_iter()
        .filter_map(|finding| match finding {
            Finding::Transfer { result, .. } => Some(result),
            _ => None,
        })
        .collect()
}

/// Lines of `resource` that say where BARs are.
fn bars(text: &str) -> Vec<String> {
    let lines = text.lines().map(str::trim);
    let taken =
        lines.filter(|line| line.starts_with("0x") && !line.starts_with("0x0000000000000000 "));
    let range = |line: &str| line.rsplit_once(' ').map(|(range, _)| range.to_owned());
    taken.filter_map(range).collect()
}

#[test]
fn two_drives_come_work_together_and_go_back_to_the_host() {
    let lab = lab();
    let mut live = Live::boot(&lab, "");
    assert_eq!(live.open_files("/dev/vfio"), [""; 0]);

    for round in 0..2 {
        add_both(&mut live);
        assert_eq!(transfers(&mut live), [Outcome::Ok; 4], "round {round}");
        for bdf in [FIRST, SECOND] {
            let host = lab
                .read(&format!("/sys/bus/pci/devices/{bdf}/resource"))
                .unwrap();
            let guest = live.guest(&format!("cat /sys/bus/pci/devices/{bdf}/resource"));
            assert_eq!(bars(&guest), bars(&host), "{bdf} is at its bus addresses");
        }
        live.remove(&soft("one"));
        live.told(&[("unplug-requested", "one"), ("removed", "one")]);
        assert_eq!(live.last_reason(), "asked");
        live.remove(&soft("two"));
        live.told(&[("unplug-requested", "two"), ("removed", "two")]);
        assert_eq!(live.open_files("/dev/vfio"), [""; 0], "round {round}");
        assert_eq!(live.locked_kb(), 0, "round {round}");
        let left = live.guest("ls /sys/bus/pci/devices");
        assert!(
            left.contains("00:00.0") && !left.contains("00:01.0"),
            "{left}"
        );

        for bdf in [FIRST, SECOND] {
            lab.bind(bdf, "nvme").unwrap();
        }
        lab.sh("while ! [ -b /dev/nvme0n1 -a -b /dev/nvme1n1 ]; do usleep 100000; done")
            .unwrap();
        lab.sh("dd if=/dev/nvme0n1 of=/dev/null bs=4096 count=1 iflag=direct")
            .unwrap();
        for bdf in [FIRST, SECOND] {
            lab.bind_vfio(bdf).unwrap();
        }
    }

    // Both at once, and one again before the guest has let go of the switch that is left empty.
    add_both(&mut live);
    live.remove(&soft("one"));
    live.remove(&soft("two"));
    let started = Instant::now();
    while live
        .events()
        .iter()
        .filter(|(event, _)| event == "device-removed")
        .count()
        < 6
    {
        assert!(started.elapsed() < PATIENCE, "{:?}", live.events());
        lab.run(["usleep", "100000"]).unwrap();
    }
    let (status, body) = live.add("one", FIRST, true);
    assert_eq!(status, 200, "{body}");
    live.guest("while ! [ -b /dev/nvme0n1 -o -b /dev/nvme1n1 ]; do usleep 100000; done");
    assert_eq!(live.power_off().exit, Exit::Code(0));
}

#[test]
fn a_guest_that_lets_go_unasked_and_a_host_that_wants_its_device_back() {
    let lab = lab();
    let mut live = Live::boot(&lab, "");
    add_both(&mut live);

    // The slot of the first member is the first of the switch's.
    live.guest("for s in /sys/bus/pci/slots/*; do grep -q 0000:02:00 $s/address && echo 0 > $s/power; done");
    live.told(&[("removed", "one")]);
    assert_eq!(live.last_reason(), "unasked");
    let again = live.add("one", FIRST, true);
    assert_eq!(again.0, 200, "{}", again.1);
    live.told(&[("added", "one")]);
    live.guest("while ! [ -b /dev/nvme0n1 -a -b /dev/nvme1n1 ]; do usleep 100000; done");
    assert_eq!(transfers(&mut live), [Outcome::Ok; 4]);

    lab.sh(&format!(
        "echo {SECOND} > /sys/bus/pci/drivers/vfio-pci/unbind"
    ))
    .unwrap();
    live.told(&[("unplug-requested", "two"), ("removed", "two")]);
    assert_eq!(lab.driver(SECOND).unwrap(), None, "the host has it back");
    let devices = live.guest("ls /sys/bus/pci/devices");
    assert!(
        devices.contains(FIRST) && !devices.contains(SECOND),
        "{devices}"
    );
    // A driver of the host does DMA of its own, which it may as soon as nobody of the group is in a VM.
    live.remove(&soft("one"));
    live.told(&[("unplug-requested", "one"), ("removed", "one")]);
    lab.bind(SECOND, "nvme").unwrap();
    lab.bind_vfio(SECOND).unwrap();
    assert_eq!(live.power_off().exit, Exit::Code(0));
}

#[test]
fn a_guest_that_never_lets_go_is_waited_for_and_forced() {
    let lab = lab();
    let mut live = Live::boot(&lab, "acpiphp.disable=1");
    let (status, body) = live.add("one", FIRST, true);
    assert_eq!(status, 200, "{body}");
    live.told(&[("added", "one")]);
    live.remove(&json!({"id": "one", "timeout_ms": 500}));
    live.told(&[("unplug-requested", "one"), ("unplug-timeout", "one")]);
    let (_, info) = live.call("GET", "vm.info", None);
    assert!(info.contains("\"one\""), "{info}");
    assert!(!live.open_files("/dev/vfio").is_empty());

    let started = Instant::now();
    live.remove(&json!({"id": "one", "force": true}));
    live.told(&[("removed", "one")]);
    assert_eq!(live.last_reason(), "forced");
    assert!(started.elapsed() < Duration::from_secs(30));
    assert_eq!(live.open_files("/dev/vfio"), [""; 0]);

    // As the operator's tool has it.
    let p2pctl = |words: &str| {
        let words = format!("p2pctl vm {words} --api-socket {API_SOCKET}");
        lab.run(words.split(' ')).unwrap()
    };
    let added = p2pctl(&format!("add {FIRST},id=one,p2p=on"));
    assert_eq!(added.code(), Some(0), "{added:#?}");
    let kept = p2pctl("remove one --timeout 1");
    assert_eq!(kept.code(), Some(1), "{kept:#?}");
    for word in ["still attached", "--force"] {
        assert!(kept.stderr.contains(word), "{word}: {kept:#?}");
    }
    let taken = p2pctl("remove one --timeout 1 --force");
    assert_eq!(taken.code(), Some(0), "{taken:#?}");
    assert!(taken.stdout.contains("free for the host"), "{taken:#?}");
    assert_eq!(live.open_files("/dev/vfio"), [""; 0]);
    assert_eq!(live.power_off().exit, Exit::Code(0));
}

#[test]
fn force_takes_a_drive_from_under_its_driver_and_the_peer_goes_on() {
    let lab = lab();
    let mut live = Live::boot(&lab, "");
    add_both(&mut live);
    live.remove(&json!({"id": "one", "force": true}));
    live.told(&[("removed", "one")]);
    live.guest(&format!(
        "while [ -e /sys/bus/pci/devices/{FIRST} ]; do usleep 100000; done"
    ));
    let read = "for d in /dev/nvme?n1; do dd if=$d of=/dev/null bs=4096 count=1 iflag=direct && echo read; done";
    let text = live.guest(read);
    assert_eq!(text.matches("read").count(), 1, "{text}");
    live.remove(&json!({"id": "two", "force": true}));
    live.told(&[("removed", "two")]);
    assert_eq!(live.open_files("/dev/vfio"), [""; 0]);
    add_both(&mut live);
    assert_eq!(transfers(&mut live), [Outcome::Ok; 4]);
    assert_eq!(live.power_off().exit, Exit::Code(0));
}
