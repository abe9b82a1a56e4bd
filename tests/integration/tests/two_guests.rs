//! Two guests with devices below one switch: what is changed for one is not changed for the other, and what is for both
//! is done at once.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::indexing_slicing, reason = "a test fails by panicking")]

mod two_guests {
    mod conformance;
    mod eight;
    mod killed;
    mod stopped;
    mod together;
    mod unwilling;
}

use lab::live::{Live, PATIENCE};
use lab::report::{Finding, Outcome};
use lab::{Lab, SharedLab, Turn, Vm};

static LAB: SharedLab = SharedLab::new("edu-eight-ports", "two-guests");

/// The DMA engines below the switch.
const ENGINES: [&str; 8] = [
    "0000:03:00.0",
    "0000:04:00.0",
    "0000:05:00.0",
    "0000:06:00.0",
    "0000:07:00.0",
    "0000:08:00.0",
    "0000:09:00.0",
    "0000:0a:00.0",
];
/// Drives elsewhere, one for the work of each guest.
const DRIVES: [&str; 2] = ["0000:0b:00.0", "0000:0c:00.0"];

/// A turn with all of them bound to vfio-pci, and the engines in groups of their own.
fn lab() -> Turn<'static> {
    let lab = LAB.turn();
    for bdf in ENGINES.iter().chain(&DRIVES) {
        lab.bind_vfio(bdf).unwrap();
    }
    let groups = ENGINES.map(|bdf| lab.group(bdf).unwrap());
    let alone = groups.iter().collect::<std::collections::BTreeSet<_>>();
    if alone.len() < ENGINES.len() {
        let goals = apart(&ENGINES);
        let words = ["p2pctl", "apply"].iter().chain(&goals);
        let apply = lab.command(words.copied()).deadline(PATIENCE);
        apply.run().unwrap().ok().unwrap();
    }
    lab
}

/// A guest with these engines, by the names of their buses, and perhaps a drive.
fn vm(engines: &[&str], drive: Option<&str>) -> Vm {
    let vm = Vm::new("modprobe nvme ; sh").kernel_words("loglevel=1");
    let devices = engines.iter().map(|bdf| (name(bdf), *bdf));
    let drive = drive.map(|bdf| ("work", bdf));
    devices.chain(drive).fold(vm, |vm, (id, bdf)| {
        vm.device_option(&format!("path=/sys/bus/pci/devices/{bdf},id={id}"))
    })
}

/// Adds an engine that is a peer.
fn peer(vm: Vm, bdf: &str) -> Vm {
    vm.device_option(&format!(
        "path=/sys/bus/pci/devices/{bdf},id={},p2p=on",
        name(bdf)
    ))
}

/// A guest whose engines are peers.
fn peers_vm(engines: &[&str]) -> Vm {
    engines.iter().fold(vm(&[], None), |vm, bdf| peer(vm, bdf))
}

/// What an engine is called in its guest.
fn name(bdf: &str) -> &str {
    match bdf.split(':').nth(1).unwrap() {
        "03" => "a",
        "04" => "b",
        "05" => "c",
        "06" => "d",
        "07" => "e",
        "08" => "f",
        "09" => "g",
        _ => "h",
    }
}

/// The words that isolate.
fn apart<'a>(engines: &[&'a str]) -> Vec<&'a str> {
    let isolate = ["--isolate"].into_iter();
    isolate.chain(engines.iter().copied()).collect()
}

/// All that a transaction which changes nothing leaves as it is: groups by their numbers, drivers, power, ACS.
fn state(lab: &Lab) -> String {
    format!("{:?}\n{}", lab.groups().unwrap(), lab.settings().unwrap())
}

/// Whether each of two engines moves words from and to memory, and what came of each transfer between engines.
fn probe(live: &mut Live<'_>) -> (Vec<Outcome>, Vec<Outcome>) {
    live.wait_for_engines(2);
    let console = live.guest("guest-probe");
    let of_peers = Finding::of_peers(&console).into_iter();
    let of_peers = of_peers.map(|(_, result)| result);
    (Finding::of_memory(&console), of_peers.collect())
}
