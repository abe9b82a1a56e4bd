//! The program itself.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use lab::lab_dir;

/// The release this was tried with.
const SCHEMATHESIS: &str = "schemathesis==4.32.5";
/// How long it may look for mistakes, in seconds.
const LOOK_FOR: &str = "240";
/// How long a call may take, in seconds. The lab is slow.
const ANSWER: &str = "60";
/// How long it takes at most, all in all.
pub(crate) const PATIENCE: Duration = Duration::from_secs(600);

/// The program, installed if it is not yet.
pub(crate) fn install() -> PathBuf {
    let venv = lab_dir().with_file_name("schemathesis");
    let program = venv.join("bin/schemathesis");
    if !program.exists() {
        let made = Command::new("python3")
            .args(["-m", "venv"])
            .arg(&venv)
            .status();
        assert!(made.unwrap().success(), "cannot make {}", venv.display());
        let pip = Command::new(venv.join("bin/pip"))
            .args(["install", "--quiet", SCHEMATHESIS])
            .status();
        assert!(pip.unwrap().success(), "cannot install {SCHEMATHESIS}");
    }
    program
}

/// Tries the API that is served on `port`, all but the `excluded` paths; what it found is on standard output.
pub(crate) fn run(program: &Path, port: u16, excluded: &[&str]) -> ExitStatus {
    let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../resources/openapi.json");
    let dir = tempfile::tempdir().unwrap();
    let excluded = excluded.iter().flat_map(|path| ["--exclude-path", path]);
    Command::new(program)
        .current_dir(dir.path())
        .arg("run")
        .arg(document.canonicalize().unwrap())
        .args(["--url", &format!("http://127.0.0.1:{port}/api/v1")])
        .args(excluded)
        // A wrong verb is 400 in cloud-hypervisor's dialect; and a path may be well-formed and still lead nowhere.
        .args([
            "--exclude-checks",
            "unsupported_method,positive_data_acceptance",
        ])
        .args(["--max-examples", "10", "--max-time", LOOK_FOR])
        .args(["--request-timeout", ANSWER, "--no-color"])
        .status()
        .unwrap()
}
