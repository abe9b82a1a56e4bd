//! Devices that come and go again and again. `LAB_LONG=1` (`cargo xtask test --long`) does it two hundred times.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::{Duration, Instant};

use lab::SharedLab;
use lab::live::Live;
use lab::protocol::Exit;
use serde_json::json;

static LAB: SharedLab = SharedLab::new("nvme-one-group", "cycles");

const DRIVES: [(&str, &str); 2] = [("one", "0000:03:00.0"), ("two", "0000:04:00.0")];

/// Until caches are warm and all of guest memory has been pinned once.
const WARM_UP: u32 = 3;
/// What the allocator may keep, in KiB.
const SLACK_KB: u64 = 512;

/// How long connections may take to be closed.
const CLOSED: Duration = Duration::from_secs(60);

fn cycles() -> u32 {
    if lab::long() { 200 } else { 6 }
}

fn cycle(live: &mut Live<'_>) {
    live.add_drives(DRIVES);
    for (id, _) in DRIVES {
        // A guest under emulation needs its time.
        live.remove(&json!({"id": id, "timeout_ms": 120_000}));
        live.told(&[("unplug-requested", id), ("removed", id)]);
    }
    live.guest("while [ -b /dev/nvme0n1 -o -b /dev/nvme1n1 ]; do usleep 20000; done");
}

#[test]
fn nothing_grows_however_often_devices_come_and_go() {
    let lab = LAB.turn();
    for (_, bdf) in DRIVES {
        lab.bind_vfio(bdf).unwrap();
    }
    let mut live = Live::boot(&lab, "");
    for _ in 0..WARM_UP {
        cycle(&mut live);
    }
    let before = live.holdings();
    for number in 0..cycles() {
        cycle(&mut live);
        if number % 20 == 19 {
            eprintln!("after {} cycles: {:?}", number + 1, live.holdings());
        }
    }
    let started = Instant::now();
    let mut after = live.holdings();
    // A connection that has been used may be open a moment longer.
    while after.files > before.files && started.elapsed() < CLOSED {
        after = live.holdings();
    }
    eprintln!("before {before:?}\nafter  {after:?}");
    assert_eq!(after.locked_kb, 0);
    assert!(after.resident_kb <= before.resident_kb + SLACK_KB);
    // Before, one may have been open as well.
    assert!(after.files <= before.files);
    assert_eq!(after.mappings, before.mappings);

    let output = live.power_off();
    assert_eq!(output.exit, Exit::Code(0));
    // What the kernel has for this VM; the kinds of IOMMU contexts stand after it, and are told while there are any.
    let census = |when: &str| {
        let line = output.stderr.lines().find_map(|line| line.split_once(when));
        let (_, counted) = line.unwrap();
        let parts = counted.split(", ").take(4);
        parts.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(census("at the end: "), census("at the start: "));
}
