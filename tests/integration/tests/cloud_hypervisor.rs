//! `p2pctl launch` with a real cloud-hypervisor, where `CH_BIN` names one.
//!
//! The IOMMU of this host translates fewer address bits than its processors have.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use lab::protocol::Exit;
use lab::report::{Finding, Outcome};
use lab::{CloudHypervisor, GUEST, Output, SharedLab, Turn, Vm};

static LAB: SharedLab = SharedLab::new("narrow-host-bridge", "cloud-hypervisor");

/// Two DMA engines of one group.
const ENGINES: [&str; 2] = ["0000:01:00.0", "0000:02:00.0"];
/// A third of their group, which cloud-hypervisor cannot assign: a BAR of it is smaller than a page.
const NEIGHBOUR: &str = "0000:03:00.0";
/// An engine of another group.
const STRANGER: &str = "0000:04:00.0";
/// A drive with BARs of 64 bits, which cloud-hypervisor puts at the top of what the processors address.
const DRIVE: &str = "0000:05:00.0";

const LAUNCH: &[&str] = &["p2pctl", "launch", "--", "cloud-hypervisor"];

/// The lab with cloud-hypervisor in it and all devices bound to vfio-pci; `None` without cloud-hypervisor.
fn lab(test: &str) -> Option<Turn<'static>> {
    let programs = CloudHypervisor::given(test)?;
    let lab = LAB.turn();
    programs.put(&lab).unwrap();
    for bdf in [ENGINES[0], ENGINES[1], NEIGHBOUR, STRANGER, DRIVE] {
        lab.bind_vfio(bdf).unwrap();
    }
    Some(lab)
}

fn peers() -> Vm {
    let vm = Vm::new("guest-probe 2").vmm(LAUNCH);
    vm.p2p_device(ENGINES[0]).p2p_device(ENGINES[1])
}

/// How devices fared with guest memory, and with each other.
fn results(output: &Output) -> (Vec<Outcome>, Vec<Outcome>) {
    let mut results = (Vec::new(), Vec::new());
    for finding in Finding::in_console(&output.stdout) {
        match finding {
            Finding::Memory { result, .. } => results.0.push(result),
            Finding::Peer { result, .. } => results.1.push(result),
            _ => {}
        }
    }
    results
}

/// Runs a VMM that must refuse.
fn refused(lab: &Turn<'_>, vm: &Vm, words: &[&str]) {
    let state = || {
        lab.sh("for d in /sys/bus/pci/devices/*; do echo $d $(readlink $d/driver) $(cat $d/enable); done")
            .unwrap()
    };
    let before = state();
    let output = lab.vm(vm).deadline(Duration::from_secs(60)).run().unwrap();
    assert_eq!(output.code(), Some(2), "{output:#?}");
    assert_eq!(output.stdout, "", "no guest was started");
    let said = output
        .stderr
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ");
    for word in words {
        assert!(said.contains(word), "{word}: {said}");
    }
    assert_eq!(state(), before);
}

#[test]
fn peers_of_one_group_reach_each_other() {
    let Some(lab) = lab("peers_of_one_group_reach_each_other") else {
        return;
    };
    let output = lab.vm(&peers()).deadline(GUEST).run().unwrap();
    assert_eq!(output.exit, Exit::Code(0), "{output:#?}");
    let (memory, transfers) = results(&output);
    assert_eq!(memory, [Outcome::Ok; 2], "{output:#?}");
    assert_eq!(transfers, [Outcome::Ok; 4], "{output:#?}");
}

#[test]
fn a_drive_is_in_reach_of_the_iommu_where_cloud_hypervisor_alone_fails() {
    let Some(lab) = lab("a_drive_is_in_reach_of_the_iommu") else {
        return;
    };
    let guest = "until grep -q live /sys/class/nvme/nvme0/state ; do sleep 1 ; done";
    let path = format!("path=/sys/bus/pci/devices/{DRIVE}");
    let alone = Vm::new(guest).vmm(&["cloud-hypervisor"]);
    let output = lab.vm(&alone.device_option(&path)).run().unwrap();
    assert_ne!(output.exit, Exit::Code(0), "{output:#?}");
    assert!(!output.stdout.contains("guest: up"), "{output:#?}");

    // Asked for by one device alone: others could come, so its BARs are mapped.
    let launched = Vm::new(guest).vmm(LAUNCH);
    let output = lab
        .vm(&launched.device_option(&(path + ",p2p=on")))
        .run()
        .unwrap();
    assert_eq!(output.exit, Exit::Code(0), "{output:#?}");
    assert!(output.stdout.contains("guest: exit 0"), "{output:#?}");
}

#[test]
fn invariant_7_without_p2p_the_iommu_stops_what_aims_at_the_other() {
    let Some(lab) = lab("invariant_7_without_p2p") else {
        return;
    };
    let vm = Vm::new("guest-probe 2").vmm(LAUNCH);
    let vm = vm.device(ENGINES[0]).device(ENGINES[1]);
    let output = lab.vm(&vm).deadline(GUEST).run().unwrap();
    assert_eq!(output.exit, Exit::Code(0), "{output:#?}");
    let (memory, transfers) = results(&output);
    assert_eq!(memory, [Outcome::Ok; 2], "{output:#?}");
    assert_eq!(transfers, [Outcome::Nothing; 4], "{output:#?}");
}

#[test]
fn invariant_1_peers_of_two_groups_are_refused() {
    let Some(lab) = lab("invariant_1_peers_of_two_groups_are_refused") else {
        return;
    };
    let vm = Vm::new("guest-probe").vmm(LAUNCH);
    let vm = vm.p2p_device(ENGINES[0]).p2p_device(STRANGER);
    let groups = [ENGINES[0], STRANGER].map(|bdf| lab.group(bdf).unwrap());
    assert_ne!(groups[0], groups[1]);
    let groups = groups.map(|group| format!("group {group}"));
    let words = [
        ENGINES[0],
        STRANGER,
        &groups[0],
        &groups[1],
        "p2pctl plan --join",
    ];
    refused(&lab, &vm, &words);
}

#[test]
fn invariant_2_a_device_beside_peers_is_refused() {
    let Some(lab) = lab("invariant_2_a_device_beside_peers_is_refused") else {
        return;
    };
    refused(&lab, &peers().device(STRANGER), &[STRANGER, "use p2p-vmm"]);
}

#[test]
fn a_signal_ends_it_as_if_it_had_been_started_directly() {
    let Some(lab) = lab("a_signal_ends_it_as_if_it_had_been_started_directly") else {
        return;
    };
    let mut ends = Vec::new();
    for vmm in [&["cloud-hypervisor"], LAUNCH] {
        let vm = Vm::new("stay").vmm(vmm);
        let mut running = lab.vm(&vm).spawn().unwrap();
        running.wait_for("guest: up", GUEST).unwrap();
        running.signal(15).unwrap();
        ends.push(running.wait().unwrap().exit);
    }
    assert_eq!(ends[0], ends[1]);
}

#[test]
fn ch_remote_finds_the_same_behind_the_front() {
    const TEST: &str = "ch_remote_finds_the_same_behind_the_front";
    let Some(lab) = lab(TEST) else { return };
    if !CloudHypervisor::given(TEST).is_some_and(|programs| programs.has_client(TEST)) {
        return;
    }
    lab.sh("rm -f /run/vm.sock /run/front.sock").unwrap();
    let argv = Vm::new("stay").vmm(LAUNCH).device(ENGINES[0]).argv();
    let argv = argv
        .into_iter()
        .chain(["--api-socket", "/run/vm.sock"].map(str::to_owned));
    let mut vmm = lab.command(argv).deadline(GUEST).spawn().unwrap();
    vmm.wait_for("guest: up", GUEST).unwrap();
    let front = [
        "p2pctl",
        "front",
        "--api-socket",
        "/run/vm.sock",
        "--listen",
        "/run/front.sock",
    ];
    let front = lab.command(front).deadline(GUEST).spawn().unwrap();
    lab.sh("i=0; until [ -S /run/front.sock ]; do i=$((i+1)); [ $i -lt 100 ]; usleep 100000; done")
        .unwrap();
    let remote = |socket: &str, words: &[&str]| {
        let argv = [&["ch-remote", "--api-socket", socket], words].concat();
        let output = lab.run(argv).unwrap();
        (output.exit, output.stdout, output.stderr)
    };
    for words in [
        &["ping"][..],
        &["info"],
        &["counters"],
        &["pause"],
        &["resume"],
        &["remove-device", "nobody"],
        &["resize", "--cpus", "99"],
    ] {
        let direct = remote("/run/vm.sock", words);
        // What changes the state is undone by what comes next, or fails twice.
        if words == ["pause"] {
            assert_eq!(remote("/run/vm.sock", &["resume"]).0, Exit::Code(0));
        }
        if words == ["resume"] {
            assert_eq!(remote("/run/vm.sock", &["pause"]).0, Exit::Code(0));
        }
        assert_eq!(remote("/run/front.sock", words), direct, "{words:?}");
    }
    // Its neighbour was not asked for P2P either, and the VM was started with none for all.
    let path = format!("path=/sys/bus/pci/devices/{},id=second", ENGINES[1]);
    let added = remote("/run/front.sock", &["add-device", &path]);
    assert_eq!(added.0, Exit::Code(0), "{added:?}");
    assert!(remote("/run/vm.sock", &["info"]).1.contains("\"second\""));
    assert_eq!(
        remote("/run/front.sock", &["shutdown-vmm"]).0,
        Exit::Code(0)
    );
    assert_eq!(vmm.wait().unwrap().exit, Exit::Code(0));
    front.signal(15).unwrap();
    front.wait().unwrap();
}
