//! The workspace programs that run in the lab. They are statically linked, so they need no libraries there.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::lock::FileLock;
use crate::paths;
use crate::progress::Progress;

/// Package and name of every workspace program that is copied into the lab.
pub const STATIC_BINARIES: [(&str, &str); 9] = [
    ("lab", "lab-agent"),
    ("lab", "guest-probe"),
    ("lab", "dma-conformance"),
    ("lab", "at-limit"),
    ("lab", "ram-hazard"),
    ("lab", "vm-call"),
    ("lab", "vmm-conformance"),
    ("p2p-vmm", "p2p-vmm"),
    ("p2pctl", "p2pctl"),
];

/// Package and name of every example that is copied into the lab.
const EXAMPLES: [(&str, &str); 2] = [("guest-topology", "light"), ("p2p-vfio", "embed")];

const TARGET: &str = "x86_64-unknown-linux-gnu";
const PROFILE: &str = "lab";

/// How long another process may take to build the same programs.
const BUILD_WAIT: Duration = Duration::from_secs(1800);

/// Paths of the built programs.
#[derive(Debug, Clone)]
pub struct Binaries {
    paths: BTreeMap<&'static str, PathBuf>,
}

impl Binaries {
    /// Builds the programs that are not up to date, once per process and in one process at a time.
    ///
    /// # Errors
    /// cargo fails; it has printed the reason to standard error.
    pub fn build(progress: &Progress) -> Result<Self> {
        static BUILT: Mutex<Option<Binaries>> = Mutex::new(None);
        let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(binaries) = &*built {
            return Ok(binaries.clone());
        }
        let binaries = Self::build_now(progress)?;
        *built = Some(binaries.clone());
        Ok(binaries)
    }

    fn build_now(progress: &Progress) -> Result<Self> {
        let _lock = lock(progress)?;
        let built = cargo_build(PROFILE, &STATIC_BINARIES, &EXAMPLES)?;
        let programs = STATIC_BINARIES.map(|(_, name)| (name, built.join(name)));
        let examples = EXAMPLES.map(|(_, name)| (name, built.join("examples").join(name)));
        let paths: BTreeMap<_, _> = programs.into_iter().chain(examples).collect();
        for (name, path) in &paths {
            ensure_static(path).with_context(|| format!("{name} cannot run in the lab"))?;
        }
        Ok(Self { paths })
    }

    /// Name and path of each program.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &Path)> {
        self.paths
            .iter()
            .map(|(name, path)| (*name, path.as_path()))
    }

    /// Path of one program.
    ///
    /// # Errors
    /// It is neither one of [`STATIC_BINARIES`] nor an example.
    pub fn path(&self, name: &str) -> Result<&Path> {
        self.paths
            .get(name)
            .map(PathBuf::as_path)
            .with_context(|| format!("{name} is not built for the lab"))
    }
}

/// Builds a program of the workspace in its release form, which takes longer. Returns its path.
///
/// # Errors
/// cargo fails; it has printed the reason to standard error.
pub fn released(package: &str, name: &str) -> Result<PathBuf> {
    let _lock = lock(&Progress::new())?;
    let path = cargo_build("release", &[(package, name)], &[])?.join(name);
    ensure_static(&path).with_context(|| format!("{name} cannot run in the lab"))?;
    Ok(path)
}

/// Lock for one build at a time.
fn lock(progress: &Progress) -> Result<FileLock> {
    FileLock::wait(
        &paths::lab_dir().join("bin-target.lock"),
        BUILD_WAIT,
        "waiting for another build of the lab's programs",
        progress,
    )
}

/// Builds static programs with cargo, without debug information. Returns their directory.
fn cargo_build(
    profile: &str,
    programs: &[(&str, &str)],
    examples: &[(&str, &str)],
) -> Result<PathBuf> {
    let target_dir = paths::lab_dir().join("bin-target");
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(paths::workspace())
        .args(["build", "--quiet", "--locked"])
        .args(["--target", TARGET, "--profile", profile])
        .arg("--target-dir")
        .arg(&target_dir)
        .env("CARGO_PROFILE_RELEASE_STRIP", "true")
        .env(
            "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS",
            "-C target-feature=+crt-static",
        )
        // These two variables would take precedence over the flags for the target.
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    for (package, binary) in programs {
        cargo.args(["--package", package, "--bin", binary]);
    }
    for (package, example) in examples {
        cargo.args(["--package", package, "--example", example]);
    }
    let status = cargo.status().context("cannot run cargo")?;
    if !status.success() {
        bail!("building programs for the lab failed: {cargo:?}: {status}");
    }
    Ok(target_dir.join(TARGET).join(profile))
}

/// Checks that the kernel can start the program without an interpreter.
pub(crate) fn ensure_static(path: &Path) -> Result<()> {
    let image = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    match interpreter(&image) {
        Ok(None) => Ok(()),
        Ok(Some(interpreter)) => bail!("{} needs {interpreter}", path.display()),
        Err(()) => bail!("{} is not a 64-bit ELF program", path.display()),
    }
}

/// The interpreter that an ELF64 image requests (ELF-64 object file format, program header `PT_INTERP`).
fn interpreter(image: &[u8]) -> Result<Option<String>, ()> {
    const PT_INTERP: usize = 3;
    let number = |offset: usize, size: usize| -> Result<usize, ()> {
        let bytes = image
            .get(offset..offset.checked_add(size).ok_or(())?)
            .ok_or(())?;
        let value = bytes
            .iter()
            .rev()
            .fold(0_u64, |value, byte| (value << 8) | u64::from(*byte));
        usize::try_from(value).map_err(|_| ())
    };
    if image.get(..5) != Some(b"\x7fELF\x02") {
        return Err(());
    }
    let (table, entry_size, entries) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
    for index in 0..entries {
        let header = index
            .checked_mul(entry_size)
            .and_then(|offset| offset.checked_add(table))
            .ok_or(())?;
        if number(header, 4)? == PT_INTERP {
            let (offset, size) = (number(header + 8, 8)?, number(header + 32, 8)?);
            let name = image
                .get(offset..offset.checked_add(size).ok_or(())?)
                .ok_or(())?;
            let name = String::from_utf8_lossy(name);
            return Ok(Some(name.trim_end_matches('\0').to_owned()));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dynamic_program_is_told_from_something_else() {
        // The test program itself is linked in the toolchain's default way.
        let own = fs::read(std::env::current_exe().unwrap()).unwrap();
        let asks_for = interpreter(&own).unwrap();
        if cfg!(target_feature = "crt-static") {
            assert_eq!(asks_for, None);
        } else {
            assert!(asks_for.unwrap().contains("ld-linux"));
        }
        assert_eq!(interpreter(b"#!/bin/sh\n"), Err(()));
    }

    #[test]
    fn a_header_that_points_outside_the_file_is_refused() {
        let mut image = vec![0_u8; 64];
        image[..5].copy_from_slice(b"\x7fELF\x02");
        image[32..40].copy_from_slice(&u64::MAX.to_le_bytes());
        image[54] = 56;
        image[56] = 1;
        assert_eq!(interpreter(&image), Err(()));
    }
}
