//! Building a part of the lab from source: required tools, cache keys, and build steps with progress.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

use super::store::hex;
use crate::paths::find_program;
use crate::progress::Progress;

/// Name of a build in the cache. It differs if any of the inputs differs.
pub(super) fn key<'a>(inputs: impl IntoIterator<Item = &'a str>) -> String {
    let mut hasher = Sha256::new();
    for input in inputs {
        hasher.update(input);
        hasher.update([0]);
    }
    let digest = hex(&hasher.finalize());
    digest.get(..16).unwrap_or(&digest).to_owned()
}

/// Checks that programs and files are present. Each is named with the Debian package that contains it.
pub(super) fn ensure_tools(
    what: &str,
    programs: &[(&str, &'static str)],
    files: &[(&str, &'static str)],
) -> Result<()> {
    let programs = programs
        .iter()
        .filter(|(name, _)| find_program(name).is_none());
    let files = files.iter().filter(|(path, _)| !Path::new(path).exists());
    let missing: Vec<&str> = programs.chain(files).map(|(_, package)| *package).collect();
    ensure!(
        missing.is_empty(),
        "building {what} needs more than is here: apt-get install {}",
        missing.join(" ")
    );
    Ok(())
}

/// Path of a build's log.
pub(super) fn log_of(work: &Path) -> String {
    work.join("log").display().to_string()
}

/// Runs a step and shows how many lines it has written so far, about one for each file.
pub(super) fn run(
    command: &mut Command,
    work: &Path,
    what: &str,
    progress: &Progress,
) -> Result<()> {
    let log = fs::File::options()
        .create(true)
        .append(true)
        .open(work.join("log"))?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log.try_clone()?)
        .spawn()
        .with_context(|| format!("cannot run {:?}", command.get_program()))?;
    let started = Instant::now();
    let mut lines = 0_u32;
    if let Some(out) = child.stdout.take() {
        for line in BufReader::new(out).split(b'\n') {
            let mut line = line.with_context(|| format!("cannot hear of {what}"))?;
            line.push(b'\n');
            (&log).write_all(&line)?;
            lines = lines.saturating_add(1);
            progress.count(what, lines, started);
        }
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("{what}: {status}");
    }
    Ok(())
}

/// Removes a directory. It need not exist.
pub(super) fn clear(dir: &Path) -> Result<()> {
    if dir.exists() {
        fs::remove_dir_all(dir).with_context(|| format!("cannot clear {}", dir.display()))?;
    }
    Ok(())
}
