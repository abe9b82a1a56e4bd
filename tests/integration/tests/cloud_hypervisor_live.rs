//! Groups change under a running guest of a real cloud-hypervisor, where `CH_BIN` names one.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use lab::live::{API_SOCKET, Live};
use lab::protocol::Exit;
use lab::report::{Finding, Outcome};
use lab::{CloudHypervisor, Daemon, SharedLab, Turn, Vm};

static LAB: SharedLab = SharedLab::new("edu-four-ports", "cloud-hypervisor-live");

const LEFT: &str = "0000:03:00.0";
const RIGHT: &str = "0000:04:00.0";
/// An engine that is not touched.
const OTHER: &str = "0000:05:00.0";

/// `launch`, for a VM that the daemon finds by itself.
const LAUNCH: &[&str] = &[
    "p2pctl",
    "launch",
    "--joinable",
    "--name",
    "web",
    "--expose",
    ALL,
    "--",
    "cloud-hypervisor",
];

/// The engines below the switch. It has no ACS: Linux alone keeps them apart, which has to be accepted.
const ALL: &str = "0000:03:00.0,0000:04:00.0,0000:05:00.0,0000:06:00.0";
const JOIN: [&str; 5] = ["--join", LEFT, RIGHT, "--expose", ALL];
const ISOLATE: [&str; 5] = ["--isolate", LEFT, RIGHT, "--expose", ALL];

/// How long the conformance checks may take, with a guest that has to let go.
const CONFORMANCE: Duration = Duration::from_secs(900);

/// The lab with cloud-hypervisor and ch-remote in it, and all devices bound to vfio-pci.
fn lab() -> Turn<'static> {
    let lab = LAB.turn();
    CloudHypervisor::given().unwrap().put(&lab).unwrap();
    for bdf in [LEFT, RIGHT, OTHER] {
        lab.bind_vfio(bdf).unwrap();
    }
    lab
}

/// A guest with devices that are no peers, and a shell.
fn guest(vmm: &[&str], devices: &[(&str, &str)]) -> Vm {
    let vm = Vm::new("sh").vmm(vmm);
    devices.iter().fold(vm, |vm, (id, bdf)| {
        vm.device_option(&format!("path=/sys/bus/pci/devices/{bdf},id={id}"))
    })
}

/// How the engines fare with guest memory, and with each other, as soon as the guest has both.
fn results(live: &mut Live<'_>) -> (Vec<Outcome>, Vec<Outcome>) {
    live.wait_for_engines(2);
    let mut results = (Vec::new(), Vec::new());
    for finding in Finding::in_console(&live.guest("guest-probe 2")) {
        match finding {
            Finding::Memory { result, .. } => results.0.push(result),
            Finding::Peer { result, .. } => results.1.push(result),
            _ => {}
        }
    }
    results
}

/// Memory reaches both engines, and neither reaches the other.
#[track_caller]
fn assert_apart(live: &mut Live<'_>) {
    let (memory, peers) = results(live);
    assert_eq!(memory, [Outcome::Ok; 2]);
    assert_eq!(peers, [Outcome::Nothing; 4]);
}

/// A guest with an engine that is regrouped and one that is not.
fn regrouped<'lab>(lab: &'lab Turn<'_>) -> Live<'lab> {
    let vm = guest(LAUNCH, &[("left", LEFT), ("other", OTHER)]);
    let mut live = Live::boot_stock(lab, &vm);
    live.guest("dmesg -n 1");
    live
}

#[test]
#[ignore = "needs CH_BIN, a static cloud-hypervisor of v52 or newer, and CH_REMOTE"]
fn the_group_of_a_device_changes_under_a_running_cloud_hypervisor_and_back() {
    let lab = lab();
    let mut live = regrouped(&lab);
    let daemon = Daemon::start(&lab, &[]);
    assert_apart(&mut live);

    let told = daemon.apply(&JOIN).ok().unwrap();
    assert!(told.contains(": done in "), "{told}");
    assert_eq!(lab.group(LEFT).unwrap(), lab.group(RIGHT).unwrap());
    assert_apart(&mut live);

    let told = daemon.apply(&ISOLATE).ok().unwrap();
    assert!(told.contains(": done in "), "{told}");
    assert_ne!(lab.group(LEFT).unwrap(), lab.group(RIGHT).unwrap());
    assert_apart(&mut live);
    daemon.stop();
    assert_eq!(live.power_off().exit, Exit::Code(0));
}

/// Where the records of the last journal start, in bytes from its start.
fn records(lab: &Turn<'_>) -> Vec<u64> {
    let last = "cat /var/lib/p2pctl/done/$(ls /var/lib/p2pctl/done | tail -n 1)";
    let journal = lab.sh(last).unwrap();
    let mut at = 0;
    let starts = journal.lines().map(|line| {
        let start = at;
        at += u64::try_from(line.len()).unwrap() + 1;
        start
    });
    starts.collect()
}

#[test]
#[ignore = "needs CH_BIN, a static cloud-hypervisor of v52 or newer, and CH_REMOTE"]
fn a_daemon_killed_on_the_way_leaves_every_device_in_its_cloud_hypervisor() {
    let lab = lab();
    let mut live = regrouped(&lab);
    let daemon = Daemon::start(&lab, &[]);
    daemon.apply(&JOIN).ok().unwrap();
    let starts = records(&lab);
    daemon.apply(&ISOLATE).ok().unwrap();
    daemon.stop();

    // More of them take many minutes; else one in the middle.
    let step = if lab::long() { 3 } else { starts.len() / 2 + 1 };
    for start in starts.iter().skip(step - 1).step_by(step) {
        let doomed = Daemon::start_to_die(&lab, start + 9, &[]);
        let output = doomed.apply(&JOIN);
        assert_eq!(output.code(), Some(1), "{output:?}");
        doomed.wait_for_death();

        let daemon = Daemon::start(&lab, &[]);
        daemon.settle();
        let joined = lab.group(LEFT).unwrap() == lab.group(RIGHT).unwrap();
        let state = if joined { "new" } else { "old" };
        eprintln!("killed at byte {start}: {state}");
        assert_apart(&mut live);
        if joined {
            daemon.apply(&ISOLATE).ok().unwrap();
        }
        daemon.stop();
    }
    assert_eq!(live.power_off().exit, Exit::Code(0));
}

#[test]
#[ignore = "needs CH_BIN, a static cloud-hypervisor of v52 or newer, and CH_REMOTE"]
fn what_cloud_hypervisor_could_not_hold_is_refused_before_anything_is_changed() {
    let lab = lab();
    let plain: Vec<&str> = LAUNCH
        .iter()
        .copied()
        .filter(|word| *word != "--joinable")
        .collect();
    let all = [("left", LEFT), ("right", RIGHT), ("other", OTHER)];
    for (vmm, devices, words) in [
        // Requests across this switch go by bus address, which it cannot keep.
        (LAUNCH, &all[..2], ["by bus address", "--route iommu"]),
        // It was not started for it.
        (&*plain, &all[..2], ["vfio_p2p_dma=off", "--joinable"]),
        // A third device could not be kept from the BARs of the two.
        (LAUNCH, &all[..], ["one IOMMU context", OTHER]),
    ] {
        let live = Live::boot_stock(&lab, &guest(vmm, devices));
        let daemon = Daemon::start(&lab, &[]);
        let groups = [LEFT, RIGHT].map(|bdf| lab.group(bdf).unwrap());
        let refused = daemon.apply(&JOIN);
        assert_eq!(refused.code(), Some(2), "{refused:#?}");
        let said = refused.stdout.split_whitespace().collect::<Vec<_>>();
        let said = said.join(" ");
        for word in words {
            // What is said leaves out the domain of functions where it can.
            let word = word.strip_prefix("0000:").unwrap_or(word);
            assert!(said.contains(word), "{word}: {said}");
        }
        assert_eq!([LEFT, RIGHT].map(|bdf| lab.group(bdf).unwrap()), groups);
        let (status, info) = live.call("GET", "vm.info", None);
        assert_eq!(status, 200, "{info}");
        for (id, _) in devices {
            assert!(info.contains(&format!("\"id\":\"{id}\"")), "{id}: {info}");
        }
        daemon.stop();
        assert_eq!(live.power_off().exit, Exit::Code(0));
    }
}

#[test]
#[ignore = "needs CH_BIN, a static cloud-hypervisor of v52 or newer, and CH_REMOTE"]
fn cloud_hypervisor_conforms() {
    let lab = lab();
    let live = Live::boot_stock(&lab, &guest(&["cloud-hypervisor"], &[("left", LEFT)]));
    let conformance = ["vmm-conformance", "record", API_SOCKET, "left"];
    let conformance = lab.command(conformance).deadline(CONFORMANCE);
    let recorded = conformance.run().unwrap().ok().unwrap();
    assert!(recorded.contains("vm.remove-device"), "{recorded}");
    // Where the library's tests take it from: resources/cloud-hypervisor.
    if let Some(file) = std::env::var_os("CH_RECORDING") {
        let said = recorded.lines().filter(|line| line.starts_with('{'));
        std::fs::write(
            file,
            said.map(|line| format!("{line}\n")).collect::<String>(),
        )
        .unwrap();
    }
    assert_eq!(live.power_off().exit, Exit::Code(0));
}
