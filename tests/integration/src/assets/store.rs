//! Sets of unpacked packages in the cache, each with a stamp that lists its contents.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::apt::{self, Package};
use crate::progress::Progress;

const STAMP: &str = "stamp.json";

/// The cache's package sets.
pub(super) struct Store {
    dir: PathBuf,
}

/// Contents of a set. Written last, so a set without it is incomplete.
#[derive(Serialize, Deserialize)]
struct Stamp {
    packages: Vec<StampedPackage>,
    files: Vec<StampedFile>,
}

#[derive(Serialize, Deserialize)]
struct StampedPackage {
    name: String,
    version: String,
    sha256: String,
}

#[derive(Serialize, Deserialize)]
struct StampedFile {
    path: PathBuf,
    size_bytes: u64,
}

impl Store {
    pub(super) fn new(cache: &Path) -> Self {
        Self {
            dir: cache.join("packages"),
        }
    }

    /// The root of a set, if it is complete: every file exists with the size it had when it was unpacked.
    pub(super) fn find(&self, set: &str) -> Option<PathBuf> {
        let dir = self.dir.join(set);
        let stamp: Stamp = serde_json::from_slice(&fs::read(dir.join(STAMP)).ok()?).ok()?;
        let root = dir.join("root");
        let complete = stamp.files.iter().all(|file| {
            root.join(&file.path)
                .metadata()
                .is_ok_and(|meta| meta.len() == file.size_bytes)
        });
        complete.then_some(root)
    }

    /// Downloads and unpacks a set, replacing any previous one.
    pub(super) fn install(
        &self,
        set: &str,
        packages: &[Package],
        progress: &Progress,
    ) -> Result<PathBuf> {
        let incoming = self.dir.join(format!("{set}.incoming"));
        let (debs, root) = (incoming.join("debs"), incoming.join("root"));
        remove(&incoming)?;
        for dir in [&debs, &root] {
            fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        }
        apt::download(packages, &debs, progress)?;
        let archives = sorted_files(&debs)?;
        verify(packages, &archives)?;
        let (mut done, total) = (0_u64, archives.iter().map(|(_, size)| size).sum());
        for (archive, size) in &archives {
            progress.amount(&format!("unpacking {set}"), done, total);
            unpack(archive, &root)?;
            done = done.saturating_add(*size);
        }
        progress.amount(&format!("unpacking {set}"), total, total);
        remove(&debs)?;
        let mut files = Vec::new();
        list_files(&root, Path::new(""), &mut files)?;
        let stamp = Stamp {
            packages: packages
                .iter()
                .map(|package| StampedPackage {
                    name: package.name.clone(),
                    version: package.version.clone(),
                    sha256: package.sha256.clone(),
                })
                .collect(),
            files,
        };
        let text = serde_json::to_vec_pretty(&stamp)?;
        fs::write(incoming.join(STAMP), text).context("cannot write the stamp")?;
        let place = self.dir.join(set);
        remove(&place)?;
        fs::rename(&incoming, &place)
            .with_context(|| format!("cannot move {} into place", place.display()))?;
        Ok(place.join("root"))
    }
}

/// Checks that every package was downloaded completely. apt checks too, but the cache is ours.
fn verify(packages: &[Package], archives: &[(PathBuf, u64)]) -> Result<()> {
    ensure!(
        archives.len() == packages.len(),
        "{} of {} packages arrived",
        archives.len(),
        packages.len()
    );
    let mut hashes = archives
        .iter()
        .map(|(path, _)| hash(path))
        .collect::<Result<Vec<_>>>()?;
    for package in packages {
        let place = hashes.iter().position(|hash| *hash == package.sha256);
        let place = place.with_context(|| {
            format!(
                "{} {} arrived damaged: no file has its SHA-256",
                package.name, package.version
            )
        })?;
        hashes.swap_remove(place);
    }
    Ok(())
}

/// SHA-256 of a file, in hexadecimal digits.
pub(super) fn hash(path: &Path) -> Result<String> {
    let mut file = fs::File::open(path)?;
    let mut hasher = Sha256::new();
    io::copy(&mut file, &mut HashWriter(&mut hasher))
        .with_context(|| format!("cannot read {}", path.display()))?;
    Ok(hex(&hasher.finalize()))
}

struct HashWriter<'a>(&'a mut Sha256);

impl io::Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unpack(archive: &Path, root: &Path) -> Result<()> {
    let output = Command::new("dpkg-deb")
        .arg("--extract")
        .arg(archive)
        .arg(root)
        .output()
        .context("cannot run dpkg-deb")?;
    ensure!(
        output.status.success(),
        "cannot unpack {}: {}",
        archive.display(),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

fn sorted_files(dir: &Path) -> Result<Vec<(PathBuf, u64)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        files.push((entry.path(), entry.metadata()?.len()));
    }
    files.sort();
    Ok(files)
}

/// Regular files below `root`. Links are skipped, because they may point outside.
fn list_files(root: &Path, below: &Path, files: &mut Vec<StampedFile>) -> Result<()> {
    for entry in fs::read_dir(root.join(below))? {
        let entry = entry?;
        let (kind, path) = (entry.file_type()?, below.join(entry.file_name()));
        if kind.is_dir() {
            list_files(root, &path, files)?;
        } else if kind.is_file() {
            let size_bytes = entry.metadata()?.len();
            files.push(StampedFile { path, size_bytes });
        }
    }
    Ok(())
}

fn remove(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A set as `install` leaves it, without the download.
    fn set_up(cache: &Path) -> (Store, PathBuf) {
        let store = Store::new(cache);
        let dir = store.dir.join("tools");
        let root = dir.join("root");
        fs::create_dir_all(root.join("bin")).unwrap();
        fs::write(root.join("bin/tool"), b"0123456789").unwrap();
        let mut files = Vec::new();
        list_files(&root, Path::new(""), &mut files).unwrap();
        let stamp = Stamp {
            packages: Vec::new(),
            files,
        };
        fs::write(dir.join(STAMP), serde_json::to_vec(&stamp).unwrap()).unwrap();
        (store, root)
    }

    #[test]
    fn a_complete_set_is_found() {
        let cache = tempfile::tempdir().unwrap();
        let (store, root) = set_up(cache.path());
        assert_eq!(store.find("tools"), Some(root));
        assert_eq!(store.find("qemu"), None);
    }

    #[test]
    fn a_file_cut_short_or_gone_makes_the_set_incomplete() {
        let cache = tempfile::tempdir().unwrap();
        let (store, root) = set_up(cache.path());
        fs::write(root.join("bin/tool"), b"01234").unwrap();
        assert_eq!(store.find("tools"), None);
        fs::remove_file(root.join("bin/tool")).unwrap();
        assert_eq!(store.find("tools"), None);
    }

    #[test]
    fn a_stamp_cut_short_makes_the_set_incomplete() {
        let cache = tempfile::tempdir().unwrap();
        let (store, root) = set_up(cache.path());
        let stamp = root.parent().unwrap().join(STAMP);
        let text = fs::read(&stamp).unwrap();
        fs::write(&stamp, &text[..text.len() / 2]).unwrap();
        assert_eq!(store.find("tools"), None);
    }
}
