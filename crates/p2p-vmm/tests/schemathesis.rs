//! What the OpenAPI document promises, tried by schemathesis (PyPI) against a real process.
//!
//! Takes minutes and pip: only with `LAB_LONG`, as `cargo xtask test --long` sets it. schemathesis goes into
//! `target/schemathesis`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{copy, sink};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread::spawn;
use std::time::{Duration, Instant};

/// The release this was tried with.
const SCHEMATHESIS: &str = "schemathesis==4.32.5";
/// How long it may look for mistakes, in seconds.
const LOOK_FOR: &str = "60";
const PATIENCE: Duration = Duration::from_secs(60);

/// Ends the process with the test.
struct Vmm(Child);

impl Drop for Vmm {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn schemathesis_finds_no_failure_and_no_breach_of_the_document() {
    if std::env::var_os("LAB_LONG").is_none_or(|long| long.is_empty()) {
        eprintln!("SKIPPED: takes minutes, only with LAB_LONG=1");
        return;
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let schemathesis = install(&root.join("target/schemathesis"));
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("socket");
    let child = Command::new(env!("CARGO_BIN_EXE_p2p-vmm"))
        .arg("--api-socket")
        .arg(&socket)
        .spawn();
    let _vmm = Vmm(child.unwrap());
    let started = Instant::now();
    while UnixStream::connect(&socket).is_err() {
        assert!(started.elapsed() < PATIENCE, "p2p-vmm does not listen");
        std::thread::sleep(Duration::from_millis(10));
    }
    let port = serve_tcp(socket);
    let status = Command::new(schemathesis)
        .current_dir(dir.path())
        .arg("run")
        .arg(root.canonicalize().unwrap().join("resources/openapi.json"))
        .args(["--url", &format!("http://127.0.0.1:{port}/api/v1")])
        // One ends the VMM, the other never ends.
        .args([
            "--exclude-path",
            "/vmm.shutdown",
            "--exclude-path",
            "/events",
        ])
        // A wrong verb is 400 in cloud-hypervisor's dialect; and a path may be well-formed and still lead nowhere.
        .args([
            "--exclude-checks",
            "unsupported_method,positive_data_acceptance",
        ])
        .args(["--max-examples", "30", "--max-time", LOOK_FOR, "--no-color"])
        .status()
        .unwrap();
    assert!(status.success(), "schemathesis found something: see above");
}

/// The program, installed if it is not yet.
fn install(venv: &Path) -> PathBuf {
    let program = venv.join("bin/schemathesis");
    if !program.exists() {
        let made = Command::new("python3")
            .args(["-m", "venv"])
            .arg(venv)
            .status();
        assert!(made.unwrap().success(), "cannot make {}", venv.display());
        let pip = Command::new(venv.join("bin/pip"))
            .args(["install", "--quiet", SCHEMATHESIS])
            .status();
        assert!(pip.unwrap().success(), "cannot install {SCHEMATHESIS}");
    }
    program
}

/// Serves the socket on a port of this machine, as schemathesis knows no unix sockets; lives as long as the test.
fn serve_tcp(socket: PathBuf) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    spawn(move || {
        for near in listener.incoming().flatten() {
            let Ok(far) = UnixStream::connect(&socket) else {
                continue;
            };
            spawn(move || pass(&near, &far));
        }
    });
    port
}

/// Passes on what is said until both have ended; who goes away early is no failure of the test.
fn pass(near: &TcpStream, far: &UnixStream) {
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let _ = copy(&mut &*far, &mut &*near);
            let _ = near.shutdown(Shutdown::Both);
        });
        let _ = copy(&mut &*near, &mut &*far);
        let _ = far.shutdown(Shutdown::Write);
        let _ = copy(&mut &*near, &mut sink());
    });
}
