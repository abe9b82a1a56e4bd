//! Somebody changes the host behind the daemon's back.

use std::time::Duration;

use lab::protocol::Exit;
use lab::report::Outcome;
use lab::{Daemon, Lab, Running};

use crate::{FIRST, SECOND, guest, lab, transfers};

/// A guest that is talked to for long.
const LONG: Duration = Duration::from_secs(3600);

/// Hundredths of a second in which mappings are closed and ACS is put back: a second. Where the machine may have other
/// work, as in the short run, ten.
fn second() -> u64 {
    if lab::long() { 100 } else { 1000 }
}

/// Prints the time, in hundredths of a second.
const NOW: &str = "read now x < /proc/uptime; echo ${now%.*}${now#*.}";

/// What the daemon tells.
struct Watch<'lab> {
    lab: &'lab Lab,
    _process: Running<'lab>,
}

impl<'lab> Watch<'lab> {
    fn start(lab: &'lab Lab) -> Self {
        let watch = ["sh", "-c", "exec p2pctl watch 2>&1 > /tmp/watch"];
        let mut process = lab.command(watch).deadline(LONG).spawn().unwrap();
        process.wait_for("waiting for events", LONG).unwrap();
        Self {
            lab,
            _process: process,
        }
    }

    /// A script that ends when an event was told so often.
    fn until(event: &str, count: u32) -> String {
        format!("while [ $(grep -c {event} /tmp/watch) -lt {count} ]; do usleep 20000; done")
    }

    fn wait_for(&self, event: &str, count: u32) {
        let script = Self::until(event, count);
        let wait = self.lab.command(["sh", "-c", &script]).deadline(LONG);
        wait.run().unwrap().ok().unwrap();
    }

    fn told(&self) -> String {
        self.lab.read("/tmp/watch").unwrap()
    }
}

/// Runs a script; the hundredths of a second between the times that it prints.
fn times(lab: &Lab, script: &str) -> Vec<u64> {
    let script = ["sh", "-c", script];
    let times = lab.command(script).deadline(LONG).run().unwrap();
    let times = times.ok().unwrap();
    let times: Vec<u64> = times.lines().map(|line| line.parse().unwrap()).collect();
    times.windows(2).map(|pair| pair[1] - pair[0]).collect()
}

#[test]
fn acs_is_put_back_and_mappings_close_when_somebody_changes_a_port_behind_the_daemons_back() {
    let lab = lab();
    let mut live = guest(&lab);
    let daemon = Daemon::start(&lab, &["web"]);
    daemon.apply(&["--join", FIRST, SECOND]).ok().unwrap();
    assert_eq!(transfers(&mut live), [Outcome::Ok; 4]);

    let watch = Watch::start(&lab);
    let back = "until [ $(setpci -s 00:04.0 ECAP_ACS+6.w) = 001d ]; do usleep 20000; done";
    // Source validation is missing, then everything is.
    for (control, count) in [("1c", 2), ("0", 4)] {
        let closed = Watch::until("windows-revoked", count);
        let script = format!(
            "{NOW}; setpci -s 00:04.0 ECAP_ACS+6.w={control}; {back}; {NOW}; {closed}; {NOW}"
        );
        let took = times(&lab, &script);
        eprintln!(
            "ACS was put back after {} ms, mappings closed {} ms later",
            took[0] * 10,
            took[1] * 10
        );
        assert!(took[0] < second(), "{took:?} in 1/100 s");
        assert!(took[0] + took[1] < second(), "{took:?} in 1/100 s");
        watch.wait_for("windows-reopened", count);
    }
    let told = watch.told();
    for event in [
        "ACS of 0000:00:04.0 is 001c, and was 001d",
        "ACS of 0000:00:04.0 is 0000, and was 001d",
        "acs-restored",
    ] {
        assert!(told.contains(event), "{told}");
    }
    // The host is as it was: the guest has kept its devices.
    assert!(!told.contains("device-replugged"), "{told}");
    assert_eq!(transfers(&mut live), [Outcome::Ok; 4]);

    // A VMM that is stopped holds up nothing but itself, and is closed as soon as it goes on.
    let stopped = format!(
        "vmm=$(cat /tmp/live/web/pid); kill -STOP $vmm; {NOW}; setpci -s 00:04.0 ECAP_ACS+6.w=0; {back}; {NOW}; \
         sleep 5; kill -CONT $vmm; {NOW}; {}; {NOW}",
        Watch::until("windows-revoked", 6)
    );
    let took = times(&lab, &stopped);
    eprintln!(
        "mappings were closed {} ms after the VMM went on",
        took[2] * 10
    );
    assert!(
        took[0] < second() && took[2] < second(),
        "{took:?} in 1/100 s"
    );
    watch.wait_for("windows-reopened", 6);
    assert_eq!(transfers(&mut live), [Outcome::Ok; 4]);

    // The kernel waits for the VMM, the VMM for the guest, and the guest lets go.
    lab.sh(&format!("echo 1 > /sys/bus/pci/devices/{SECOND}/remove"))
        .unwrap();
    watch.wait_for(&format!("'{SECOND} is gone'"), 1);
    let left: Vec<String> = live.peers().into_iter().map(|(id, _)| id).collect();
    assert_eq!(left, ["one"]);
    lab.sh("echo 1 > /sys/bus/pci/rescan").unwrap();
    drop(watch);
    daemon.stop();
    assert_eq!(live.power_off().exit, Exit::Code(0));
    let apart = [
        "p2pctl",
        "apply",
        "--isolate",
        FIRST,
        SECOND,
        "--expose",
        FIRST,
        SECOND,
    ];
    lab.bind_vfio(SECOND).unwrap();
    lab.command(apart).run().unwrap().ok().unwrap();
}
