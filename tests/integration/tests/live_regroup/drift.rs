//! Somebody changes the host behind the daemon's back.

use std::time::Duration;

use lab::protocol::Exit;
use lab::report::{Finding, Outcome};
use lab::{Daemon, Lab, Running};

use super::guests::{ACS, FIRST, SECOND, guest, lab, transfers};

/// A guest that is talked to for long.
const LONG: Duration = Duration::from_secs(3600);

/// Milliseconds in which mappings are closed and ACS is put back.
const LIMIT_MS: u64 = 1000;

/// What somebody changes: a port of both paths, or the one above the first drive.
const PORT: &str = if ACS { "0000:02:00.0" } else { "0000:00:04.0" };

/// Where all is kept in the lab host that the daemon tells.
const TOLD: &str = "/tmp/watch";

/// What the daemon tells.
struct Watch<'lab> {
    lab: &'lab Lab,
    _process: Running<'lab>,
}

impl<'lab> Watch<'lab> {
    fn start(lab: &'lab Lab) -> Self {
        let watch = format!("exec p2pctl watch 2>&1 > {TOLD}");
        let watch = ["sh", "-c", &watch];
        let mut process = lab.command(watch).deadline(LONG).spawn().unwrap();
        process.wait_for("waiting for events", LONG).unwrap();
        Self {
            lab,
            _process: process,
        }
    }

    /// Waits until an event was told so often.
    fn wait_for(&self, event: &str, count: u32) {
        let script =
            format!("while [ $(grep -c {event} {TOLD}) -lt {count} ]; do usleep 20000; done");
        let wait = self.lab.command(["sh", "-c", &script]).deadline(LONG);
        wait.run().unwrap().ok().unwrap();
    }

    fn told(&self) -> String {
        self.lab.read(TOLD).unwrap()
    }
}

/// Runs a probe that tells when things happened; the milliseconds between them.
fn times(lab: &Lab, words: &[&str]) -> Vec<u64> {
    let probe = ["guest-probe"].iter().chain(words).copied();
    let told = lab.command(probe).deadline(LONG).run().unwrap();
    let times = Finding::in_console(&told.ok().unwrap()).into_iter();
    let times: Vec<u64> = times
        .filter_map(|finding| match finding {
            Finding::At { ms, .. } => Some(ms),
            _ => None,
        })
        .collect();
    times.windows(2).map(|pair| pair[1] - pair[0]).collect()
}

pub(crate) fn is_put_back_and_mappings_close() {
    let lab = lab();
    let mut live = guest(&lab);
    let daemon = Daemon::start(&lab, &["web"]);
    daemon.apply(&["--join", FIRST, SECOND]).ok().unwrap();
    assert_eq!(transfers(&mut live), [Outcome::Ok; 4]);

    let watch = Watch::start(&lab);
    let good = lab.sh(&format!("setpci -s {PORT} ECAP_ACS+6.w")).unwrap();
    let good = good.trim();
    // Source validation is missing, then everything is.
    let all: u16 = u16::from_str_radix(good, 16).unwrap();
    let changed = [all & !1, 0].map(|control| format!("{control:#06x}"));
    for (control, count) in changed.iter().zip(["2", "4"]) {
        let probe = ["acs", PORT, control, TOLD, "windows-revoked", count];
        let took = times(&lab, &probe);
        eprintln!(
            "ACS was put back after {} ms, mappings closed {} ms later",
            took[0], took[1]
        );
        assert!(took[0] + took[1] < LIMIT_MS, "{took:?} ms");
        watch.wait_for("windows-reopened", count.parse().unwrap());
    }
    let told = watch.told();
    for control in &changed {
        let control = control.trim_start_matches("0x");
        // With egress control on, a vector is told behind a control.
        let (is, was) = (
            format!("ACS of {PORT} is {control}"),
            format!("and was {good}"),
        );
        let mut lines = told.lines();
        let found = lines.any(|line| line.contains(&is) && line.contains(&was));
        assert!(found, "{is}, {was}: {told}");
    }
    assert!(told.contains("acs-restored"), "{told}");
    // The host is as it was: the guest has kept its devices.
    assert!(!told.contains("device-replugged"), "{told}");
    assert_eq!(transfers(&mut live), [Outcome::Ok; 4]);

    // A VMM that is stopped holds up nothing but itself, and is closed as soon as it goes on.
    let vmm = lab.sh("vmm=$(cat /tmp/live/web/pid); kill -STOP $vmm; echo $vmm");
    let vmm = vmm.unwrap();
    let vmm = vmm.trim();
    let took = times(&lab, &["acs", PORT, "0x0", TOLD, "acs-restored", "3"]);
    eprintln!(
        "with the VMM stopped, ACS was put back after {} ms",
        took[0]
    );
    assert!(took[0] < LIMIT_MS, "{took:?} ms");
    lab.run(["sleep", "5"]).unwrap().ok().unwrap();
    let took = times(&lab, &["resume", vmm, TOLD, "windows-revoked", "6"]);
    eprintln!("mappings were closed {} ms after the VMM went on", took[0]);
    assert!(took[0] < LIMIT_MS, "{took:?} ms");
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
