//! Guests that do not do what they are asked, or do what they are not.

use std::time::{Duration, Instant};

use lab::live::{Live, PATIENCE};
use lab::protocol::Exit;
use lab::report::Outcome;
use serde_json::json;

use crate::{FIRST, SECOND, add_both, lab, soft, transfers};

/// A kernel that does not know slots.
const DEAF: &str = "acpiphp.disable=1";

/// How long the API may take for an answer, whatever the guest does meanwhile.
const ANSWER: Duration = Duration::from_secs(20);

fn added(live: &mut Live<'_>, id: &str, bdf: &str) {
    let (status, body) = live.add(id, bdf, true);
    assert_eq!(status, 200, "{body}");
    live.told(&[("added", id)]);
}

/// How many drives the guest sees.
fn drives(live: &mut Live<'_>) -> usize {
    let classes = live.guest("cat /sys/bus/pci/devices/*/class");
    classes.matches("0x010802").count()
}

#[test]
fn what_a_guest_ejects_twice_is_gone_once() {
    let lab = lab();
    let mut live = Live::boot(&lab, DEAF);
    added(&mut live, "one", FIRST);
    live.remove(&soft("one"));
    live.told(&[("unplug-requested", "one")]);
    live.guest("guest-probe eject ; guest-probe eject");
    live.told(&[("removed", "one")]);
    assert_eq!(live.open_files("/dev/vfio"), [""; 0]);

    live.guest("guest-probe eject ; guest-probe eject");
    // What comes into the slot is not taken for what was ejected.
    added(&mut live, "one", FIRST);
    assert_ne!(live.open_files("/dev/vfio"), [""; 0]);
    live.guest("guest-probe eject ; guest-probe eject");
    live.told(&[("removed", "one")]);
    assert_eq!(live.last_reason(), "unasked");
    assert_eq!(live.power_off().exit, Exit::Code(0));
}

#[test]
fn a_guest_that_starts_again_has_let_go_of_what_was_to_leave() {
    let lab = lab();
    let mut live = Live::boot(&lab, DEAF);
    added(&mut live, "one", FIRST);
    added(&mut live, "two", SECOND);
    live.remove(&soft("one"));
    live.told(&[("unplug-requested", "one")]);
    live.type_in("reboot -f");
    live.wait_for_boot();
    live.told(&[("removed", "one")]);
    assert_eq!(drives(&mut live), 1, "the one that nobody wanted to leave");
    let (_, info) = live.call("GET", "vm.info", None);
    let has = |bdf: &str| info.contains(&format!("/sys/bus/pci/devices/{bdf}"));
    assert!(has(SECOND) && !has(FIRST), "{info}");

    // Late is not never.
    live.remove(&json!({"id": "two", "timeout_ms": 300}));
    live.told(&[("unplug-requested", "two"), ("unplug-timeout", "two")]);
    live.type_in("echo c > /proc/sysrq-trigger");
    live.wait_for_boot();
    live.told(&[("removed", "two")]);
    assert_eq!(live.open_files("/dev/vfio"), [""; 0]);
    let (_, info) = live.call("GET", "vm.info", None);
    assert!(!info.contains(SECOND), "{info}");
    added(&mut live, "two", SECOND);
    assert_eq!(live.power_off().exit, Exit::Code(0));
}

#[test]
fn a_guest_that_hammers_its_slots_disturbs_itself_only() {
    const HAMMER: Duration = Duration::from_secs(30);
    let lab = lab();
    let mut live = Live::boot(&lab, "");
    add_both(&mut live);
    let before = live.holdings();
    live.type_in(&format!("guest-probe hammer {}", HAMMER.as_secs()));

    let started = Instant::now();
    let mut answers = 0;
    while started.elapsed() < HAMMER {
        let asked = Instant::now();
        assert_eq!(live.call("GET", "vmm.ping", None).0, 200);
        assert_eq!(live.call("GET", "vm.info", None).0, 200);
        let (status, body) = live.add("one", FIRST, true);
        // Still there, or on its way out, or there is no way to the slot any more; never anything worse.
        assert!([200, 400, 409, 500].contains(&status), "{status} {body}");
        assert!(asked.elapsed() < ANSWER, "{:?}", asked.elapsed());
        answers += 1;
    }
    assert!(answers >= 3, "{answers}");
    // The guest's kernel may be beyond help by now. What it has still is taken away.
    for id in ["one", "two"] {
        drop(live.call(
            "PUT",
            "vm.remove-device",
            Some(&json!({"id": id, "force": true})),
        ));
    }
    // A processor of the guest may be in the middle of an access to one of them.
    let started = Instant::now();
    while !live.peers().is_empty() {
        assert!(started.elapsed() < PATIENCE, "{:?}", live.peers());
    }
    let told = live.events();
    for id in ["one", "two"] {
        let gone = ("device-removed".to_owned(), id.to_owned());
        assert!(told.contains(&gone), "{told:?}");
    }
    assert_eq!(live.open_files("/dev/vfio"), [""; 0]);
    let after = live.holdings();
    assert!(after.files <= before.files && after.mappings <= before.mappings);
    assert_eq!(after.locked_kb, 0);

    // The next life of the guest has nothing of it.
    live.reboot();
    live.news(0);
    add_both(&mut live);
    assert_eq!(transfers(&mut live), [Outcome::Ok; 4]);
    assert_eq!(live.power_off().exit, Exit::Code(0));
}

#[test]
fn a_host_that_wants_its_device_back_gets_it_from_a_guest_that_never_lets_go() {
    let lab = lab();
    let mut live = Live::boot(&lab, DEAF);
    added(&mut live, "one", FIRST);
    added(&mut live, "two", SECOND);
    let started = Instant::now();
    lab.sh(&format!(
        "echo {FIRST} > /sys/bus/pci/drivers/vfio-pci/unbind"
    ))
    .unwrap();
    assert!(
        started.elapsed() > Duration::from_secs(20),
        "the guest had no time"
    );
    live.told(&[("unplug-requested", "one"), ("removed", "one")]);
    let (_, info) = live.call("GET", "vm.info", None);
    let has = |bdf: &str| info.contains(&format!("/sys/bus/pci/devices/{bdf}"));
    assert!(has(SECOND) && !has(FIRST), "{info}");
    assert_eq!(live.power_off().exit, Exit::Code(0));
    // Not before: no driver of the host gets a device whose group is in use by a VM.
    lab.bind(FIRST, "nvme").unwrap();
}
