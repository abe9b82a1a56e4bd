//! A p2p-vmm with an API, and the files of its VMs.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::kernel;

/// Timeout for its start and its end.
const TIMEOUT: Duration = Duration::from_secs(60);

/// The process, and a directory whose path always has the same length.
pub(crate) struct Vmm {
    child: Child,
    dir: TempDir,
}

impl Vmm {
    /// Starts it with an API and with `options`.
    pub(crate) fn start(options: &[&str]) -> Self {
        let mut builder = tempfile::Builder::new();
        let dir = builder.prefix("p2p-vmm-").tempdir_in("/tmp").unwrap();
        let at = dir.path();
        fs::write(at.join("kernel"), kernel::image()).unwrap();
        let payload = format!(r#""payload":{{"kernel":"{}/kernel"}}"#, at.display());
        let more = r#""memory":{"size":67108864},"cpus":{"boot_vcpus":2,"max_vcpus":2}"#;
        for (name, part) in [
            ("vm", more.to_owned()),
            ("unknown", format!(r#"{more},"p2p":true"#)),
            (
                "unsupported",
                format!(r#"{more},"disks":[{{"path":"/d"}}]"#),
            ),
        ] {
            let json = format!("{{{payload},{part}}}");
            fs::write(at.join(name).with_extension("json"), json).unwrap();
        }
        let child = Command::new(env!("CARGO_BIN_EXE_p2p-vmm"))
            .arg("--api-socket")
            .arg(at.join("socket"))
            .args(options)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let this = Self { child, dir };
        let started = Instant::now();
        while UnixStream::connect(this.socket()).is_err() {
            assert!(started.elapsed() < TIMEOUT, "p2p-vmm does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        this
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir().join("socket")
    }

    /// Waits for its end. Returns whether it succeeded.
    pub(crate) fn exits_successfully(&mut self) -> bool {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.success();
            }
            assert!(started.elapsed() < TIMEOUT, "p2p-vmm does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
