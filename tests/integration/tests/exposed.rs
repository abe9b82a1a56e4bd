//! Devices below one switch without ACS, some of one guest, some of another and some of the host: refused, and with the
//! exposure accepted as announced.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use lab::live::{Live, PATIENCE};
use lab::protocol::Exit;
use lab::report::{Finding, Outcome};
use lab::{Daemon, Lab, Output, SharedLab, Vm};

static LAB: SharedLab = SharedLab::new("mixed-four-ports", "exposed");

/// DMA engines, one for each guest.
const FIRST: &str = "0000:03:00.0";
const SECOND: &str = "0000:04:00.0";
/// A drive and a network card that the host's drivers have.
const DRIVE: &str = "0000:05:00.0";
const CARD: &str = "0000:06:00.0";

fn vm(bdf: &str, exposed: &[&str]) -> Vm {
    let vm = Vm::new("sh").kernel_words("loglevel=1").device(bdf);
    match exposed {
        [] => vm,
        _ => vm.word("--expose").word(&exposed.join(",")),
    }
}

fn refused(output: &Output, words: &[&str]) {
    assert_eq!(output.code(), Some(2), "{output:#?}");
    assert_eq!(output.stdout, "", "no guest was started");
    for word in words {
        assert!(output.stderr.contains(word), "{word}: {output:#?}");
    }
}

/// Whether the engine of a guest reads at a bus address what it has written there. The register inverts it.
fn reaches(live: &mut Live<'_>, address: &str) -> bool {
    let findings = Finding::in_console(&live.guest(&format!("guest-probe aim {address}")));
    let mut aimed = findings.iter().filter_map(|finding| match finding {
        Finding::Aimed { read, expected, .. } => Some(read == expected),
        _ => None,
    });
    aimed.next().unwrap()
}

#[test]
fn invariant_3_a_device_below_a_switch_without_acs_comes_only_with_the_exposure_accepted() {
    let lab = LAB.turn();
    for bdf in [FIRST, SECOND] {
        lab.bind_vfio(bdf).unwrap();
    }
    let before = lab.settings().unwrap();
    let output = lab.vm(&vm(FIRST, &[])).run().unwrap();
    let words = [FIRST, SECOND, DRIVE, "driver nvme", CARD, "--expose"];
    refused(&output, &words);
    // What is not named stays refused.
    let output = lab.vm(&vm(FIRST, &[FIRST, SECOND, CARD])).run().unwrap();
    refused(&output, &[DRIVE]);
    assert_eq!(lab.settings().unwrap(), before);

    let all = [FIRST, SECOND, DRIVE, CARD];
    let mut web = Live::boot_vm(&lab, &vm(FIRST, &all));
    let mut db = Live::boot_named(&lab, "db", &vm(SECOND, &all));
    web.wait_for_engines(1);
    db.wait_for_engines(1);
    let (_, told) = web.call("GET", "vm.p2p", None);
    for exposed in [FIRST, SECOND, DRIVE, CARD] {
        assert!(told.contains(exposed), "{exposed}: {told}");
    }
    // The hole is what was announced …
    for (from, to) in [(&mut web, SECOND), (&mut db, FIRST)] {
        assert!(reaches(from, &lab.bus_address(to).unwrap()), "{to}");
    }
    // … and no more: the IOMMU has the rest.
    assert!(!reaches(&mut web, "0x40000000"));
    for live in [web, db] {
        assert_eq!(live.power_off().exit, Exit::Code(0));
    }
}

/// How long the daemon may be watched.
const WATCH: Duration = Duration::from_secs(3600);

fn apply(lab: &Lab, goals: &[&str]) {
    let words = ["p2pctl", "apply"].iter().chain(goals).copied();
    let apply = lab.command(words).deadline(PATIENCE);
    apply.run().unwrap().ok().unwrap();
}

/// What came of the transfers between the two engines of a guest.
fn transfers(live: &mut Live<'_>) -> Vec<Outcome> {
    live.wait_for_engines(2);
    let console = live.guest("guest-probe 2");
    let transfers = Finding::of_peers(&console).into_iter();
    transfers.map(|(_, result)| result).collect()
}

#[test]
fn invariant_8_peers_that_reach_a_function_that_arrives_stay_closed_until_it_is_gone() {
    let lab = LAB.turn();
    for bdf in [FIRST, SECOND] {
        lab.bind_vfio(bdf).unwrap();
    }
    apply(&lab, &["--join", FIRST, SECOND]);
    let remove = format!("echo 1 > /sys/bus/pci/devices/{CARD}/remove");
    lab.sh(&remove).unwrap();
    // Its kernel does not know slots: it lets go of nothing.
    let vm = Vm::new("sh").kernel_words("loglevel=1 acpiphp.disable=1");
    let vm = [("a", FIRST), ("b", SECOND)]
        .iter()
        .fold(vm, |vm, (id, bdf)| {
            let path = format!("/sys/bus/pci/devices/{bdf}");
            vm.device_option(&format!("path={path},id={id},p2p=on,expose={DRIVE}"))
        });
    let mut web = Live::boot_vm(&lab, &vm);
    let daemon = Daemon::start(&lab, &["web"]);
    assert_eq!(transfers(&mut web), [Outcome::Ok; 4]);
    let watch = ["sh", "-c", "exec p2pctl watch 2>&1"];
    let mut watch = lab.command(watch).deadline(WATCH).spawn().unwrap();
    watch.wait_for("waiting for events", PATIENCE).unwrap();

    lab.sh("echo 1 > /sys/bus/pci/rescan").unwrap();
    for what in ["isolation-lost", "windows-revoked", "device-kept-closed"] {
        watch.wait_for(what, PATIENCE).unwrap();
    }
    let told = watch.stdout().unwrap();
    assert!(told.contains(CARD), "{told}");
    assert!(!told.contains("windows-reopened"), "{told}");
    assert_eq!(web.peers().len(), 2, "they are there yet");
    lab.sh(&remove).unwrap();
    watch.wait_for("windows-reopened", PATIENCE).unwrap();
    while watch.stdout().unwrap().matches("windows-reopened").count() < 2 {
        lab.run(["usleep", "200000"]).unwrap().ok().unwrap();
    }
    assert_eq!(transfers(&mut web), [Outcome::Ok; 4]);

    drop(watch);
    daemon.stop();
    assert_eq!(web.power_off().exit, Exit::Code(0));
    lab.sh("echo 1 > /sys/bus/pci/rescan").unwrap();
    apply(
        &lab,
        &["--isolate", FIRST, SECOND, "--expose", FIRST, SECOND],
    );
}
