//! `p2pctl serve` in the lab host.
//!
//! Any failure panics, which fails the test.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use crate::agent::{Output, Running};
use crate::host::Lab;
use crate::live::api_socket;
use crate::protocol::Exit;

/// How long a transaction with guests may take under emulation.
const TRANSACTION: Duration = Duration::from_secs(600);

/// How long the daemon may take until it listens.
const START: Duration = Duration::from_secs(120);

/// How long the daemon may run.
const LIFE: Duration = Duration::from_secs(4 * 3600);

const SOCKET: &str = "/run/p2pctl/api.sock";

/// How long guests may take to release a device, in seconds, unless a test sets another time.
const GUEST: u32 = 120;

/// A running daemon. It is killed when this is dropped.
pub struct Daemon<'lab> {
    lab: &'lab Lab,
    process: Running<'lab>,
}

impl<'lab> Daemon<'lab> {
    /// Starts a daemon that manages the guests of these names, and waits until it listens.
    pub fn start(lab: &'lab Lab, guests: &[&str]) -> Self {
        Self::start_with(lab, &["p2pctl", "serve"], guests)
    }

    /// Starts a daemon that `at-limit` kills when its journal is longer than `bytes` bytes.
    pub fn start_to_die(lab: &'lab Lab, bytes: u64, guests: &[&str]) -> Self {
        let bytes = bytes.to_string();
        Self::start_with(lab, &["at-limit", &bytes, "p2pctl", "serve"], guests)
    }

    fn start_with(lab: &'lab Lab, words: &[&str], guests: &[&str]) -> Self {
        let guests = guests.iter();
        let named = |name: &&str| format!("{name}={}", api_socket(name));
        let guests: Vec<String> = guests.map(named).collect();
        lab.run(["rm", "-f", SOCKET]).unwrap();
        let words = words.iter().map(|word| (*word).to_owned());
        let guests = guests
            .into_iter()
            .flat_map(|guest| ["--vm".to_owned(), guest]);
        let process = lab
            .command(words.chain(guests))
            .deadline(LIFE)
            .spawn()
            .unwrap();
        let script = format!("until [ -S {SOCKET} ]; do usleep 50000; done");
        let wait = lab.command(["sh", "-c", &script]).deadline(START);
        wait.run().unwrap().ok().unwrap();
        Self { lab, process }
    }

    /// Applies the changes that these options describe and waits for the result.
    pub fn apply(&self, goals: &[&str]) -> Output {
        self.begin(GUEST, goals).wait().unwrap()
    }

    /// Starts to apply the changes and does not wait. Guests have `guest_s` seconds to release a device.
    pub fn begin(&self, guest_s: u32, goals: &[&str]) -> Running<'lab> {
        let given = guest_s.to_string();
        let words = ["p2pctl", "apply", "--guest-timeout", &given];
        let words = words.iter().chain(goals).map(|word| (*word).to_owned());
        let command = self.lab.command(words).deadline(TRANSACTION);
        command.spawn().unwrap()
    }

    /// Number of files that the daemon has open. No request may be in progress meanwhile.
    pub fn open_files(&self) -> usize {
        let count = self.lab.sh("ls /proc/$(pidof p2pctl)/fd | wc -l");
        count.unwrap().trim().parse().unwrap()
    }

    /// Resets a function in one of these ways.
    pub fn reset(&self, function: &str, kinds: &str) -> Output {
        let words = ["p2pctl", "reset", function, "--kind", kinds];
        self.lab.run(words).unwrap()
    }

    /// Waits until the daemon is killed.
    pub fn wait_for_death(self) {
        let output = self.process.wait().unwrap();
        assert!(matches!(output.exit, Exit::Signal(_)), "{output:?}");
    }

    /// Kills the daemon at once, whatever it is doing.
    pub fn kill(self) {
        const SIGKILL: i32 = 9;
        self.process.signal(SIGKILL).unwrap();
        self.wait_for_death();
    }

    /// Waits until no change is under way or unfinished.
    pub fn settle(&self) {
        // Both values must be present: a missing answer does not mean that no change is left.
        let script = "until status=$(p2pctl status --json); echo \"$status\" | grep -q '\"busy\": false' && \
            echo \"$status\" | grep -q '\"unfinished\": null'; do usleep 200000; done";
        let wait = self.lab.command(["sh", "-c", script]).deadline(TRANSACTION);
        wait.run().unwrap().ok().unwrap();
    }

    /// Stops the daemon as systemd does.
    pub fn stop(self) {
        const SIGTERM: i32 = 15;
        self.process.signal(SIGTERM).unwrap();
        let output = self.process.wait().unwrap();
        assert_eq!(output.code(), Some(0), "{output:?}");
    }
}
