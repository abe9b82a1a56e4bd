//! `p2pctl launch` with a real cloud-hypervisor, where `CH_BIN` names one.
//!
//! The IOMMU of this host translates fewer address bits than its processors have.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use lab::live::{API_SOCKET, Live};
use lab::protocol::Exit;
use lab::report::{Finding, Outcome};
use lab::{
    CloudHypervisor, GUEST, GUEST_INITRAMFS, GUEST_KERNEL, Output, Running, SharedLab, Turn, Vm,
};
use serde_json::{Value, json};

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

/// The lab with cloud-hypervisor and ch-remote in it, and all devices bound to vfio-pci.
fn lab() -> Turn<'static> {
    let lab = LAB.turn();
    CloudHypervisor::given().unwrap().put(&lab).unwrap();
    for bdf in [ENGINES[0], ENGINES[1], NEIGHBOUR, STRANGER, DRIVE] {
        lab.bind_vfio(bdf).unwrap();
    }
    lab
}

/// Whether the cloud-hypervisor that was given can be told to map no BARs.
fn has_p2p_switch() -> bool {
    CloudHypervisor::given().unwrap().has_p2p_switch().unwrap()
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

/// How devices fared with each other.
fn transfers(console: &str) -> Vec<Outcome> {
    let peers = Finding::in_console(console).into_iter();
    let peers = peers.filter_map(|finding| match finding {
        Finding::Peer { result, .. } => Some(result),
        _ => None,
    });
    peers.collect()
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
#[ignore = "needs CH_BIN, a static cloud-hypervisor of v52 or newer, and CH_REMOTE"]
fn peers_of_one_group_reach_each_other() {
    let lab = lab();
    let output = lab.vm(&peers()).deadline(GUEST).run().unwrap();
    assert_eq!(output.exit, Exit::Code(0), "{output:#?}");
    let (memory, transfers) = results(&output);
    assert_eq!(memory, [Outcome::Ok; 2], "{output:#?}");
    assert_eq!(transfers, [Outcome::Ok; 4], "{output:#?}");
}

#[test]
#[ignore = "needs CH_BIN, a static cloud-hypervisor of v52 or newer, and CH_REMOTE"]
fn a_drive_is_in_reach_of_the_iommu_where_cloud_hypervisor_alone_fails() {
    let lab = lab();
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
#[ignore = "needs CH_BIN, a static cloud-hypervisor of v52 or newer, and CH_REMOTE"]
fn invariant_7_without_p2p_the_iommu_stops_what_aims_at_the_other() {
    let lab = lab();
    let vm = Vm::new("guest-probe 2").vmm(LAUNCH);
    let vm = vm.device(ENGINES[0]).device(ENGINES[1]);
    if !has_p2p_switch() {
        return refused(&lab, &vm, &["cannot be disabled", "v52.0 or newer"]);
    }
    let output = lab.vm(&vm).deadline(GUEST).run().unwrap();
    assert_eq!(output.exit, Exit::Code(0), "{output:#?}");
    let (memory, transfers) = results(&output);
    assert_eq!(memory, [Outcome::Ok; 2], "{output:#?}");
    assert_eq!(transfers, [Outcome::Nothing; 4], "{output:#?}");
}

#[test]
#[ignore = "needs CH_BIN, a static cloud-hypervisor of v52 or newer, and CH_REMOTE"]
fn invariant_1_peers_of_two_groups_are_refused() {
    let lab = lab();
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
#[ignore = "needs CH_BIN, a static cloud-hypervisor of v52 or newer, and CH_REMOTE"]
fn invariant_2_a_device_beside_peers_is_refused() {
    let lab = lab();
    refused(&lab, &peers().device(STRANGER), &[STRANGER, "use p2p-vmm"]);
}

#[test]
#[ignore = "needs CH_BIN, a static cloud-hypervisor of v52 or newer, and CH_REMOTE"]
fn a_signal_ends_it_as_if_it_had_been_started_directly() {
    let lab = lab();
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

/// What `ch-remote` says to a socket, without the time and the numbers of processes.
fn remote(lab: &Turn<'_>, socket: &str, words: &[&str]) -> (Exit, String, String) {
    let argv = [&["ch-remote", "--api-socket", socket], words].concat();
    let output = lab.command(argv).deadline(GUEST).run().unwrap();
    let no_number = |text: String| {
        let lines = text.lines().filter(|line| !line.contains("\"pid\":"));
        // What it logs begins with the time.
        let lines = lines.map(|line| line.split_once(" ERROR ").map_or(line, |(_, said)| said));
        lines
            .collect::<Vec<_>>()
            .join("\n")
            .replace(socket, "SOCKET")
    };
    // In which order an object has its keys differs from process to process.
    let stdout = match serde_json::from_str::<Value>(&output.stdout) {
        Ok(mut value) => {
            if let Some(fields) = value.as_object_mut() {
                fields.remove("pid");
            }
            value.to_string()
        }
        Err(_) => output.stdout,
    };
    (output.exit, no_number(stdout), no_number(output.stderr))
}

fn wait_for_socket(lab: &Turn<'_>, socket: &str) {
    lab.sh(&format!("until [ -S {socket} ]; do usleep 100000; done"))
        .unwrap();
}

/// A proxy for the VMM at a socket.
fn front<'lab>(lab: &'lab Turn<'_>, vmm: &str, listen: &str) -> Running<'lab> {
    let front = ["p2pctl", "proxy", "--api-socket", vmm, "--listen", listen];
    let front = lab.command(front).deadline(GUEST).spawn().unwrap();
    wait_for_socket(lab, listen);
    front
}

/// A device that there is not.
const NOWHERE: &str = "path=/sys/bus/pci/devices/none";

/// What `ch-remote` can say to a VMM that has no VM at first, in an order that makes sense.
const CALLS: &[&[&str]] = &[
    &["ping"],
    &["info"],
    &["boot"],
    &["add-device", NOWHERE],
    &["create", "/tmp/vm.json"],
    &["create", "/tmp/vm.json"],
    &["boot"],
    &["boot"],
    &["info"],
    &["counters"],
    &["nmi"],
    &["pause"],
    &["resume"],
    &["resume"],
    &["resize", "--cpus", "99"],
    &["resize-zone", "--id", "none", "--size", "64M"],
    &["resize-disk", "--disk", "none", "--size", "64M"],
    &["remove-device", "none"],
    &["add-disk", "path=/none"],
    &["add-fs", "tag=none,socket=/none"],
    &["add-pmem", "file=/none"],
    &["add-user-device", "socket=/none"],
    &["add-vsock", "cid=1,socket=/none"],
    &["add-generic-vhost-user", "socket=/none"],
    &["coredump", "file:///none/core"],
    &["snapshot", "file:///none"],
    &["reboot"],
    &["shutdown"],
    &["info"],
    &["delete"],
    &["delete"],
    &["shutdown-vmm"],
];

#[test]
#[ignore = "needs CH_BIN, a static cloud-hypervisor of v52 or newer, and CH_REMOTE"]
fn every_call_of_ch_remote_is_answered_behind_the_front_as_without_it() {
    let lab = lab();
    let config = json!({
        "payload": {"kernel": GUEST_KERNEL, "initramfs": GUEST_INITRAMFS, "cmdline": "panic=-1 -- run stay"},
        "memory": {"size": 512 << 20},
        "serial": {"mode": "Null"},
        "console": {"mode": "Off"},
    });
    lab.sh("rm -f /run/direct.sock /run/behind.sock /run/front.sock")
        .unwrap();
    lab.sh(&format!("cat > /tmp/vm.json <<'END'\n{config}\nEND"))
        .unwrap();
    let [direct, behind] = ["/run/direct.sock", "/run/behind.sock"].map(|socket| {
        let vmm = lab.command(["cloud-hypervisor", "--api-socket", socket]);
        let vmm = vmm.deadline(GUEST * 4).spawn().unwrap();
        wait_for_socket(&lab, socket);
        vmm
    });
    let front = front(&lab, "/run/behind.sock", "/run/front.sock");
    let mut done = 0;
    for words in CALLS {
        let alone = remote(&lab, "/run/direct.sock", words);
        eprintln!("{words:?}: {:?}", alone.0);
        done += u32::from(alone.0 == Exit::Code(0));
        assert_eq!(remote(&lab, "/run/front.sock", words), alone, "{words:?}");
        if *words == ["counters"] {
            // The proxy checks the devices of these calls and answers with a reason of its own.
            for (words, reason) in [
                (["add-device", NOWHERE], "lspci -D lists them"),
                (
                    ["add-vdpa", "path=/none"],
                    "no PCI function is behind the vDPA device /none",
                ),
                (
                    ["restore", "source_url=file:///none"],
                    "is not the file:// URL of a directory",
                ),
            ] {
                let [theirs, ours] = ["/run/direct.sock", "/run/front.sock"]
                    .map(|socket| remote(&lab, socket, &words));
                assert_eq!(ours.0, theirs.0, "{ours:?} {theirs:?}");
                assert!(ours.2.contains(reason), "{ours:?}");
            }
        }
    }
    assert!(done >= 14, "only {done} were done");
    for vmm in [direct, behind] {
        assert_eq!(vmm.wait().unwrap().exit, Exit::Code(0));
    }
    front.signal(15).unwrap();
    front.wait().unwrap();
}

#[test]
#[ignore = "needs CH_BIN, a static cloud-hypervisor of v52 or newer, and CH_REMOTE"]
fn p2p_vmm_answers_ch_remote() {
    let lab = lab();
    lab.sh("rm -f /run/ours.sock").unwrap();
    let argv = Vm::new("stay").device_option(&format!(
        "path=/sys/bus/pci/devices/{},id=first,p2p=on",
        ENGINES[0]
    ));
    let argv = argv.argv().into_iter();
    let argv = argv.chain(["--api-socket", "/run/ours.sock"].map(str::to_owned));
    let mut vmm = lab.command(argv).deadline(GUEST * 4).spawn().unwrap();
    vmm.wait_for("guest: up", GUEST).unwrap();
    let ask = |words: &[&str]| {
        let answer = remote(&lab, "/run/ours.sock", words);
        assert_eq!(answer.0, Exit::Code(0), "{words:?}: {answer:?}");
        answer.1
    };
    assert!(ask(&["ping"]).contains("p2p"));
    let second = format!("path=/sys/bus/pci/devices/{},id=second", STRANGER);
    let added = ask(&["add-device", &second]);
    assert!(added.contains("\"second\""), "{added}");
    let info: Value = serde_json::from_str(&ask(&["info"])).unwrap();
    let devices: Vec<_> = info
        .pointer("/config/devices")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|device| device.get("id"))
        .collect();
    assert_eq!(devices, ["first", "second"]);
    for words in [
        &["counters"][..],
        &["pause"],
        &["resume"],
        &["remove-device", "second"],
        &["reboot"],
        &["shutdown"],
        &["boot"],
        &["power-button"],
        &["shutdown"],
        &["delete"],
    ] {
        ask(words);
    }
    let nobody = remote(&lab, "/run/ours.sock", &["remove-device", "nobody"]);
    assert_eq!(nobody.0, Exit::Code(1), "{nobody:?}");
    ask(&["shutdown-vmm"]);
    assert_eq!(vmm.wait().unwrap().exit, Exit::Code(0));
}

#[test]
#[ignore = "needs CH_BIN, a static cloud-hypervisor of v52 or newer, and CH_REMOTE"]
fn devices_of_a_running_guest_become_peers_and_strangers_again() {
    let lab = lab();
    lab.sh("rm -f /run/front.sock").unwrap();
    let joinable = ["p2pctl", "launch", "--joinable", "--", "cloud-hypervisor"];
    let both = [("left", ENGINES[0]), ("right", ENGINES[1])];
    let path = |bdf: &str| format!("/sys/bus/pci/devices/{bdf}");
    let vm = Vm::new("sh").vmm(&joinable);
    let vm = both.iter().fold(vm, |vm, (id, bdf)| {
        vm.device_option(&format!("path={},id={id}", path(bdf)))
    });
    let mut live = Live::boot_stock(&lab, &vm);
    live.guest("dmesg -n 1");
    let probe = |live: &mut Live<'_>| {
        live.wait_for_engines(2);
        transfers(&live.guest("guest-probe 2"))
    };
    assert_eq!(probe(&mut live), [Outcome::Nothing; 4]);

    let front = front(&lab, API_SOCKET, "/run/front.sock");
    let ask = |call: &str, body: Value| {
        let (call, body) = (
            ["vm-call", "/run/front.sock", "PUT", call],
            body.to_string(),
        );
        let words = call.into_iter().chain([body.as_str()]);
        lab.run(words).unwrap().ok().unwrap()
    };
    let add = |(id, bdf): (&str, &str), p2p: bool| {
        ask(
            "vm.add-device",
            json!({"id": id, "path": path(bdf), "p2p": p2p}),
        )
    };
    let remove = |ids: &[&str]| {
        for id in ids {
            let answer = ask("vm.remove-device", json!({ "id": id }));
            assert!(answer.starts_with("204"), "{answer}");
        }
        // The guest's kernel forgets a device a moment before it lets go of it.
        let ids = ids.join("|");
        let listed = format!(r#"vm-call /run/front.sock GET vm.info | grep -qE '"({ids})"'"#);
        let wait = format!("while {listed}; do usleep 100000; done");
        let wait = lab.command(["sh", "-c", &wait]).deadline(GUEST);
        wait.run().unwrap().ok().unwrap();
    };
    for (p2p, expected) in [(true, Outcome::Ok), (false, Outcome::Nothing)] {
        remove(&["left", "right"]);
        for device in both {
            let answer = add(device, p2p);
            assert!(answer.starts_with("200"), "{answer}");
        }
        assert_eq!(probe(&mut live), [expected; 4]);
    }

    // One IOMMU group holds peers or unshared devices.
    remove(&["left"]);
    let answer = add(both[0], true);
    assert!(answer.starts_with("409"), "{answer}");
    assert!(answer.contains("cannot be kept apart"), "{answer}");

    // A peer that is added beside an unshared device has no BARs for others, also when that device is gone.
    remove(&["right"]);
    let alone = ("alone", STRANGER);
    for (device, p2p) in [(alone, false), (both[0], true)] {
        let answer = add(device, p2p);
        assert!(answer.starts_with("200"), "{answer}");
    }
    live.wait_for_engines(2);
    remove(&["alone"]);
    let answer = add(both[1], true);
    assert!(answer.starts_with("409"), "{answer}");
    assert!(answer.contains("its BARs are not mapped"), "{answer}");
    assert_eq!(live.power_off().exit, Exit::Code(0));
    front.signal(15).unwrap();
    front.wait().unwrap();
}

#[test]
#[ignore = "needs CH_BIN, a static cloud-hypervisor of v52 or newer, and CH_REMOTE"]
fn a_device_comes_through_the_front() {
    let lab = lab();
    lab.sh("rm -f /run/vm.sock /run/front.sock").unwrap();
    let argv = Vm::new("stay").vmm(LAUNCH).device(ENGINES[0]).argv();
    let argv = argv
        .into_iter()
        .chain(["--api-socket", "/run/vm.sock"].map(str::to_owned));
    let mut vmm = lab.command(argv).deadline(GUEST).spawn().unwrap();
    vmm.wait_for("guest: up", GUEST).unwrap();
    let front = front(&lab, "/run/vm.sock", "/run/front.sock");
    // Its neighbour was not asked for P2P either, and the VM was started with none for all.
    let path = format!("path=/sys/bus/pci/devices/{},id=second", ENGINES[1]);
    let added = remote(&lab, "/run/front.sock", &["add-device", &path]);
    let info = remote(&lab, "/run/vm.sock", &["info"]).1;
    let came = has_p2p_switch();
    assert_eq!(added.0, Exit::Code(i32::from(!came)), "{added:?}");
    assert_eq!(info.contains("\"second\""), came, "{info}");
    let why = "this VM maps every BAR for every device";
    assert_eq!(added.2.contains(why), !came, "{added:?}");
    let end = remote(&lab, "/run/front.sock", &["shutdown-vmm"]);
    assert_eq!(end.0, Exit::Code(0), "{end:?}");
    assert_eq!(vmm.wait().unwrap().exit, Exit::Code(0));
    front.signal(15).unwrap();
    front.wait().unwrap();
}
