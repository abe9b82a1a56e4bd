//! A function arrives where peers reach it without the IOMMU, and their guest does not let go of them.

use std::time::Duration;

use lab::Daemon;
use lab::live::{Live, PATIENCE};
use lab::protocol::Exit;
use lab::report::Outcome;

use crate::{ENGINES, apart, lab, peers_vm, probe};

/// How long the daemon may be watched.
const WATCH: Duration = Duration::from_secs(3600);

#[test]
fn peers_that_reach_a_function_that_arrives_stay_closed_until_it_is_gone() {
    let lab = lab();
    let [a, b, .., last] = ENGINES;
    let words = ["p2pctl", "apply", "--join", a, b];
    lab.command(words)
        .deadline(PATIENCE)
        .run()
        .unwrap()
        .ok()
        .unwrap();
    let remove = format!("echo 1 > /sys/bus/pci/devices/{last}/remove");
    lab.sh(&remove).unwrap();
    // Its kernel does not know slots: it lets go of nothing.
    let mut web = Live::boot_vm(&lab, &peers_vm(&[a, b]).kernel_words("acpiphp.disable=1"));
    let daemon = Daemon::start(&lab, &["web"]);
    assert_eq!(probe(&mut web).1, [Outcome::Ok; 4]);
    let watch = ["sh", "-c", "exec p2pctl watch 2>&1"];
    let mut watch = lab.command(watch).deadline(WATCH).spawn().unwrap();
    watch.wait_for("waiting for events", PATIENCE).unwrap();

    lab.sh("echo 1 > /sys/bus/pci/rescan").unwrap();
    for what in [
        &format!("{a} reaches {last} without the IOMMU, through 0000:02:00.0"),
        "isolation-lost",
        "windows-revoked",
        "device-kept-closed",
    ] {
        watch.wait_for(what, PATIENCE).unwrap();
    }
    assert_eq!(web.peers().len(), 2, "they are there yet");
    assert!(!watch.stdout().unwrap().contains("windows-reopened"));
    lab.sh(&remove).unwrap();
    watch.wait_for("windows-reopened", PATIENCE).unwrap();
    while watch.stdout().unwrap().matches("windows-reopened").count() < 2 {
        lab.run(["usleep", "200000"]).unwrap().ok().unwrap();
    }
    assert_eq!(probe(&mut web).1, [Outcome::Ok; 4]);

    drop(watch);
    daemon.stop();
    assert_eq!(web.power_off().exit, Exit::Code(0));
    lab.sh("echo 1 > /sys/bus/pci/rescan").unwrap();
    let words = ["p2pctl", "apply"].into_iter().chain(apart(&[a, b]));
    lab.command(words)
        .deadline(PATIENCE)
        .run()
        .unwrap()
        .ok()
        .unwrap();
}
