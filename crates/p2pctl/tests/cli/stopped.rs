//! The daemon beside a VMM that was stopped.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use test_machine::hosts;
use vmm_api::{Client, connect};

use crate::run::OnDisk;

/// How long an answer may take that does not concern the stopped VMM.
const SOON: Duration = Duration::from_secs(1);
/// Far more than any step takes, so that a hang fails.
const PATIENCE: Duration = Duration::from_secs(60);
/// How many clients of the stopped VMM wait.
const PENDING: usize = 300;

struct Daemon {
    _machine: OnDisk,
    dir: tempfile::TempDir,
    process: Child,
    _stopped: (UnixListener, Vec<UnixStream>),
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Daemon {
    /// With one VM that has the first drive of two, and one that is stopped.
    fn start() -> Self {
        let machine = OnDisk::new(&hosts::named("switch-without-acs"));
        let random = machine.sys().join("../proc/sys/kernel/random");
        fs::create_dir_all(&random).unwrap();
        fs::write(random.join("boot_id"), "first\n").unwrap();
        // nvme has the second drive.
        let driver = "bus/pci/devices/0000:04:00.0/driver";
        fs::remove_file(machine.sys().join(driver)).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        serve_vm(&at("web"));
        let stopped = UnixListener::bind(at("stopped")).unwrap();
        let pending = (0..PENDING).map_while(|_| connect(&at("stopped"), SOON / 100).ok());
        let pending = pending.collect();
        let vm = |name: &str| format!("{name}={}", at(name).display());
        let process = Command::new(env!("CARGO_BIN_EXE_p2pctl"))
            .args(["serve", "--vm", &vm("stopped"), "--vm", &vm("web")])
            .arg("--sysfs")
            .arg(machine.sys())
            .arg("--state-dir")
            .arg(at("state"))
            .arg("--socket")
            .arg(at("api"))
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let started = Instant::now();
        while UnixStream::connect(at("api")).is_err() {
            assert!(started.elapsed() < PATIENCE, "the daemon is not there");
            thread::sleep(Duration::from_millis(5));
        }
        Self {
            _machine: machine,
            process,
            _stopped: (stopped, pending),
            dir,
        }
    }

    fn client(&self) -> Client {
        Client::new(self.dir.path().join("api"))
    }
}

/// A VMM of this project whose VM has the first drive.
fn serve_vm(socket: &Path) {
    let listener = UnixListener::bind(socket).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = [0; 4096];
            let count = stream.read(&mut request).unwrap_or(0);
            let request = String::from_utf8_lossy(&request[..count]);
            let answer = if request.contains("vmm.ping") {
                json!({"build_version": "1", "version": "1", "pid": 1, "features": ["p2p"]})
            } else {
                let device = json!({"path": "/sys/bus/pci/devices/0000:03:00.0", "id": "left"});
                json!({"config": {"devices": [device]}})
            };
            let answer = answer.to_string();
            let head = format!("HTTP/1.1 200 \r\nContent-Length: {}\r\n\r\n", answer.len());
            // Whoever asked may have gone.
            drop(stream.write_all((head + &answer).as_bytes()));
        }
    });
}

fn timed<T>(what: &str, ask: impl FnOnce() -> T) -> T {
    let started = Instant::now();
    let answer = ask();
    let took = started.elapsed();
    assert!(took < SOON, "{what} took {took:?}");
    answer
}

#[test]
fn a_stopped_vmm_delays_no_call_about_others() {
    let daemon = Daemon::start();
    let client = daemon.client();
    let _: Value = timed("status", || client.get("status")).unwrap();
    let all = json!(["0000:03:00.0", "0000:04:00.0"]);
    let wanted = json!({"goals": {"join": [all]}, "options": {"expose": all, "with": all}});
    let plan = timed("plan", || client.put("plan", &wanted));
    let plan: Value = serde_json::from_slice(&plan.unwrap().unwrap()).unwrap();
    assert_eq!(plan["blockers"], json!([]), "{plan}");
    assert_eq!(plan["guests"][0]["vm"], "web", "{plan}");
    let request = json!({"plan": plan["plan"]["plan"]});
    let begun = timed("apply", || client.put("apply", &request))
        .unwrap()
        .unwrap();
    let begun: Value = serde_json::from_slice(&begun).unwrap();
    assert!(begun["transaction"].is_string(), "{begun}");
    let _: Value = timed("status", || client.get("status")).unwrap();
}
