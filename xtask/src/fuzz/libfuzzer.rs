//! Builds and runs the fuzz targets as one program with libFuzzer.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, ensure};

use super::report::Run;

/// Flags with which stable rustc instruments all code for libFuzzer: a counter for each edge, a table of edge
/// addresses, and the operands of comparisons.
const INSTRUMENT: [&str; 5] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];

/// Maximum length of an input, in bytes. Seeds are not longer.
const MAX_INPUT_BYTES: u32 = 8192;
/// Memory limit of the process.
const MAX_MEMORY_MIB: u32 = 1024;
/// Limit of one allocation.
const MAX_ALLOCATION_MIB: u32 = 64;
/// Time limit for one input.
const MAX_SECONDS: u32 = 20;

/// The program with the fuzz targets.
pub(super) struct Program {
    /// Directory of the package `fuzz`.
    package: PathBuf,
    /// `target/fuzz`.
    dir: PathBuf,
    path: PathBuf,
}

impl Program {
    /// Builds the program in `target/fuzz`, because its flags differ from those of the other builds.
    pub(super) fn build(package: &Path, target_dir: &Path) -> Result<Self> {
        let compiler = env::var_os("CXX").unwrap_or_else(|| "c++".into());
        let has_compiler = Command::new(&compiler)
            .arg("--version")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success());
        ensure!(
            has_compiler,
            "cannot run {}, which libFuzzer is built with: install a C++ compiler (apt install g++), or name one in CXX",
            compiler.display()
        );
        let host = host_triple()?;
        let dir = target_dir.join("fuzz");
        let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        // With an explicit target, the flags do not apply to build scripts.
        let built = Command::new(cargo)
            .args(["build", "--quiet", "--locked", "--package", "fuzz"])
            .args(["--features", "libfuzzer", "--profile", "fuzz"])
            .args(["--target", &host, "--target-dir"])
            .arg(&dir)
            .env("CARGO_ENCODED_RUSTFLAGS", INSTRUMENT.join("\x1f"))
            .status()
            .context("cannot run cargo")?;
        ensure!(built.success(), "cannot build the fuzz targets");
        Ok(Self {
            package: package.to_owned(),
            path: dir.join(host).join("fuzz/fuzz"),
            dir,
        })
    }

    /// Runs a target for some minutes, or until it finds a failure.
    pub(super) fn fuzz(&self, target: &str, minutes: f64) -> Result<Run> {
        let corpus = self.dir.join("corpus").join(target);
        let found = self.dir.join("found").join(target);
        for dir in [&corpus, &found] {
            fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        }
        let log = self.dir.join(format!("{target}.log"));
        let open = || File::create(&log).with_context(|| format!("cannot make {}", log.display()));
        let seconds = (minutes * 60.0).ceil();
        let mut command = self.command(target);
        let words = self.package.join("dictionaries").join(target);
        if words.exists() {
            command.arg(format!("-dict={}", words.display()));
        }
        let status = command
            .arg(format!("-max_total_time={seconds}"))
            .arg(format!("-artifact_prefix={}/", found.display()))
            .arg("-print_final_stats=1")
            .args([&corpus, &self.package.join("seeds").join(target)])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(open()?)
            .status()
            .with_context(|| format!("cannot run {}", self.path.display()))?;
        let text = fs::read(&log).with_context(|| format!("cannot read {}", log.display()))?;
        Ok(Run::read(
            target,
            status.success(),
            &String::from_utf8_lossy(&text),
            log,
        ))
    }

    /// Runs a target once on this input, with its output on the terminal.
    pub(super) fn replay(&self, target: &str, input: &Path) -> Result<ExitCode> {
        let shown = input.display();
        ensure!(input.is_file(), "{shown} is no file");
        let status = self
            .command(target)
            .arg(input)
            .env("RUST_BACKTRACE", "1")
            .status()
            .with_context(|| format!("cannot run {}", self.path.display()))?;
        Ok(match status.success() {
            true => ExitCode::SUCCESS,
            false => ExitCode::FAILURE,
        })
    }

    fn command(&self, target: &str) -> Command {
        let mut command = Command::new(&self.path);
        command
            .env("FUZZ_TARGET", target)
            .arg(format!("-max_len={MAX_INPUT_BYTES}"))
            .arg(format!("-rss_limit_mb={MAX_MEMORY_MIB}"))
            .arg(format!("-malloc_limit_mb={MAX_ALLOCATION_MIB}"))
            .arg(format!("-timeout={MAX_SECONDS}"));
        command
    }
}

/// The target triple of this machine.
fn host_triple() -> Result<String> {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).arg("-vV").output();
    let output = output.context("cannot run rustc")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host
        .context("rustc does not say what its host is")?
        .to_owned())
}
