//! Recovery of transaction journals on a simulated host.

use std::fs;
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;

use hotplug::regroup::{Regroup, StateDir};
use iommu_group::{Goals, Kernel, Plan, PlanOptions, Sbdf};
use serde_json::Value;

use crate::fake_host::{FakeHost, Killed};

/// Two endpoints below a switch, and a port above one of them.
const JOINED: [&str; 2] = ["0000:03:00.0", "0000:04:00.0"];
const PORT: &str = "0000:02:00.0";
/// The other functions of the machine.
const OTHERS: [&str; 4] = [
    "0000:02:02.0",
    "0000:02:03.0",
    "0000:05:00.0",
    "0000:06:00.0",
];

/// The input is how the host differs from the recorded one, the number of records after which the process that joins
/// two endpoints is killed, and lines that follow in its journal: records without their checksums, or anything else.
/// Checks that recovery ends, and that it writes nothing to a device that has replaced a recorded one.
pub(crate) fn journal(input: &[u8]) {
    let [host, count, rest @ ..] = input else {
        return;
    };
    let machine = small_machine();
    let state = crate::memory_dir();
    let running = state.path().join("running.jsonl");
    // If false, all lines come from the input.
    let genuine = host & 0x80 == 0;
    if genuine {
        join(&machine, state.path(), (*count).into());
    }
    let mut text = fs::read(&running).unwrap_or_default();
    for line in rest.split_inclusive(|byte| *byte == b'\n') {
        text.extend(sealed(line));
    }
    fs::write(&running, &text).expect("space");
    if host & 1 != 0 {
        let boot = machine.proc_dir().join("sys/kernel/random/boot_id");
        fs::write(boot, "second\n").expect("space");
    }
    if host & 2 != 0 {
        machine.replace(sbdf(JOINED[0]));
    }
    if host & 4 != 0 {
        machine.replace(sbdf(PORT));
    }
    if host & 8 != 0 {
        machine.renumber();
    }
    let regroup = Regroup::new(&machine, &[], StateDir::new(state.path()));
    match regroup.recover(&mut |_| {}) {
        Ok(recovered) => drop(recovered),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    // If the whole journal comes from the input, it is not known which device a record means.
    if genuine {
        let strayed = machine.strayed.borrow();
        assert!(strayed.is_empty(), "written to other devices: {strayed:?}");
    }
}

/// Adds the checksum to a line if it is an object; returns other lines unchanged.
fn sealed(line: &[u8]) -> Vec<u8> {
    let Some(text) = line.trim_ascii_end().strip_suffix(b"}") else {
        return line.to_vec();
    };
    let whole = [text, b"}"].concat();
    let step = |sum: u64, byte: &u8| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    let sum = whole.iter().fold(0xcbf2_9ce4_8422_2325, step);
    [text, format!(",\"sum\":\"{sum:016x}\"}}\n").as_bytes()].concat()
}

fn sbdf(text: &str) -> Sbdf {
    text.parse().expect("an address")
}

fn small_machine() -> FakeHost {
    FakeHost::new("switch-four-nvme.json", "7.2.12", |document| {
        if let Some(functions) = document.get_mut("functions").and_then(Value::as_object_mut) {
            functions
                .retain(|at, _| !OTHERS.contains(&at.as_str()) && !at.starts_with("0000:00:1"));
        }
    })
}

/// Joins two endpoints in a process that is killed after it has written `records` records.
fn join(machine: &FakeHost, state: &Path, records: usize) {
    let topology = machine.topology();
    let joined = JOINED.map(sbdf);
    let goals = Goals {
        join: vec![joined.into()],
        ..Goals::default()
    };
    let options = PlanOptions {
        expose: joined.into(),
        with: joined.into(),
        ..PlanOptions::default()
    };
    let plan = Plan::make(&topology, &Kernel::of(&topology), &goals, &options).expect("a plan");
    let mut count = 0;
    let result = panic::catch_unwind(AssertUnwindSafe(|| {
        Regroup::new(machine, &[], StateDir::new(state)).apply(&plan, &mut |_| {
            if count == records {
                panic::resume_unwind(Box::new(Killed));
            }
            count += 1;
        })
    }));
    match result {
        Ok(done) => drop(done.expect("it is done")),
        Err(panic) if panic.is::<Killed>() => {}
        Err(panic) => panic::resume_unwind(panic),
    }
}
