//! `p2pctl serve` in the lab host.
//!
//! What goes wrong is a panic: it fails the test.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use crate::agent::{Output, Running};
use crate::host::Lab;
use crate::live::api_socket;
use crate::protocol::Exit;

/// How long a transaction with guests may take under emulation.
const TRANSACTION: Duration = Duration::from_secs(600);

/// How long the daemon may take to listen.
const START: Duration = Duration::from_secs(120);

/// How long it may live.
const LIFE: Duration = Duration::from_secs(4 * 3600);

const SOCKET: &str = "/run/p2pctl/api.sock";

/// How long guests may take to let go of a device, in seconds, unless a test says otherwise.
const GUEST: u32 = 120;

/// The daemon. It is killed when it is dropped.
pub struct Daemon<'lab> {
    lab: &'lab Lab,
    process: Running<'lab>,
}

impl<'lab> Daemon<'lab> {
    /// One that knows these guests by these names, and listens.
    pub fn start(lab: &'lab Lab, guests: &[&str]) -> Self {
        Self::start_with(lab, &["p2pctl", "serve"], guests)
    }

    /// One that the kernel kills when its journal is longer than this.
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

    /// Asks it to carry out what these options say.
    pub fn apply(&self, goals: &[&str]) -> Output {
        self.begin(GUEST, goals).wait().unwrap()
    }

    /// Asks for it and does not wait; guests have so many seconds to let go of a device.
    pub fn begin(&self, guest_s: u32, goals: &[&str]) -> Running<'lab> {
        let given = guest_s.to_string();
        let words = ["p2pctl", "apply", "--guest-timeout", &given];
        let words = words.iter().chain(goals).map(|word| (*word).to_owned());
        let command = self.lab.command(words).deadline(TRANSACTION);
        command.spawn().unwrap()
    }

    /// How many files it has open. Nobody may be asking it meanwhile.
    pub fn open_files(&self) -> usize {
        let count = self.lab.sh("ls /proc/$(pidof p2pctl)/fd | wc -l");
        count.unwrap().trim().parse().unwrap()
    }

    /// Asks it to reset a function in one of these ways.
    pub fn reset(&self, function: &str, kinds: &str) -> Output {
        let words = ["p2pctl", "reset", function, "--kind", kinds];
        self.lab.run(words).unwrap()
    }

    /// Waits for it to be killed.
    pub fn wait_for_death(self) {
        let output = self.process.wait().unwrap();
        assert!(matches!(output.exit, Exit::Signal(_)), "{output:?}");
    }

    /// Kills it as it is, in the midst of whatever it does.
    pub fn kill(self) {
        const SIGKILL: i32 = 9;
        self.process.signal(SIGKILL).unwrap();
        self.wait_for_death();
    }

    /// Waits until no change is under way or unfinished.
    pub fn settle(&self) {
        // It says both: no answer is no sign that there is nothing.
        let script = "until status=$(p2pctl status --json); echo \"$status\" | grep -q '\"busy\": false' && \
            echo \"$status\" | grep -q '\"unfinished\": null'; do usleep 200000; done";
        let wait = self.lab.command(["sh", "-c", script]).deadline(TRANSACTION);
        wait.run().unwrap().ok().unwrap();
    }

    /// Ends it as systemd does.
    pub fn stop(self) {
        const SIGTERM: i32 = 15;
        self.process.signal(SIGTERM).unwrap();
        let output = self.process.wait().unwrap();
        assert_eq!(output.code(), Some(0), "{output:?}");
    }
}
