//! Running of the binary under test.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use test_machine::Machine;

/// Far more than any run takes: it is there so that a hang fails instead of hanging.
const DEADLINE: Duration = Duration::from_secs(120);

/// What a run of `p2pctl` left.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) status: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Run {
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// Runs `p2pctl` at 80 columns, into pipes.
pub(crate) fn p2pctl<I: AsRef<OsStr>>(args: impl IntoIterator<Item = I>) -> Run {
    let mut child = Command::new(env!("CARGO_BIN_EXE_p2pctl"))
        .env("COLUMNS", "80")
        .env_remove("NO_COLOR")
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = child.id();
    let (done, finished) = std::sync::mpsc::channel();
    let waiter = std::thread::spawn(move || {
        let started = Instant::now();
        if finished.recv_timeout(DEADLINE).is_err() {
            let _ = Command::new("kill").arg(pid.to_string()).status();
        }
        started.elapsed()
    });
    let stdin = child.stdin.take();
    drop(stdin);
    let output: Output = child.wait_with_output().unwrap();
    let _ = done.send(());
    let elapsed = waiter.join().unwrap();
    assert!(elapsed < DEADLINE, "p2pctl did not end within {DEADLINE:?}");
    Run {
        status: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// A machine on disk.
pub(crate) struct OnDisk(TempDir);

impl OnDisk {
    pub(crate) fn new(machine: &Machine) -> Self {
        Self(machine.tree())
    }

    pub(crate) fn sys(&self) -> PathBuf {
        self.0.path().join("sys")
    }

    /// Runs a command on it.
    pub(crate) fn run(&self, args: &[&str]) -> Run {
        let sys = self.sys();
        let sys = sys.to_str().unwrap();
        p2pctl(args.iter().copied().chain(["--sysfs", sys]))
    }
}

/// Where the fixture of a machine is.
pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../resources/topologies")
        .join(format!("{name}.json"))
}

/// Runs a command on the fixture of a machine.
pub(crate) fn on(name: &str, args: &[&str]) -> Run {
    let file = fixture(name);
    p2pctl(
        args.iter()
            .copied()
            .chain(["--from", file.to_str().unwrap()]),
    )
}
