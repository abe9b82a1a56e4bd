//! Builds a cpio archive (`newc` format, Linux Documentation/driver-api/early-userspace/buffer-format.rst).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use cpio::newc::{Builder, ModeFileType, trailer};

/// The kernel skips zeros between archives up to a multiple of four; this uses full blocks.
const ALIGN: usize = 512;

/// Library directory that the host's init sets for the loader. It is not a standard directory, so it works whatever the
/// standard directory is on the machine that the libraries come from.
const LIBRARIES: &str = "/lib/lab";

/// Paths in the archive and their contents. Parent directories are added.
#[derive(Default)]
pub(super) struct Archive {
    entries: BTreeMap<PathBuf, Entry>,
}

enum Entry {
    Directory,
    File { content: Content, mode: u32 },
}

enum Content {
    Bytes(Vec<u8>),
    From(PathBuf),
}

impl Archive {
    pub(super) fn directory(&mut self, path: &str) {
        self.add(path, Entry::Directory);
    }

    pub(super) fn script(&mut self, path: &str, text: &str) {
        let content = Content::Bytes(text.as_bytes().to_vec());
        self.add(
            path,
            Entry::File {
                content,
                mode: 0o755,
            },
        );
    }

    pub(super) fn bytes(&mut self, path: &str, bytes: Vec<u8>) {
        let content = Content::Bytes(bytes);
        self.add(
            path,
            Entry::File {
                content,
                mode: 0o644,
            },
        );
    }

    pub(super) fn program(&mut self, path: &str, source: &Path) {
        let content = Content::From(source.to_owned());
        self.add(
            path,
            Entry::File {
                content,
                mode: 0o755,
            },
        );
    }

    pub(super) fn file(&mut self, path: &str, source: &Path) {
        let content = Content::From(source.to_owned());
        self.add(
            path,
            Entry::File {
                content,
                mode: 0o644,
            },
        );
    }

    /// Adds a shared library. The loader keeps its full path, because programs name it in full.
    pub(super) fn library(&mut self, source: &Path) {
        let name = source.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with("ld-linux") {
            self.program("/lib64/ld-linux-x86-64.so.2", source);
        } else {
            self.program(&format!("{LIBRARIES}/{name}"), source);
        }
    }

    /// Adds every file below a directory.
    pub(super) fn tree(&mut self, path: &str, source: &Path) -> Result<()> {
        let entries =
            fs::read_dir(source).with_context(|| format!("cannot list {}", source.display()))?;
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name();
            let inner = format!("{}/{}", path.trim_end_matches('/'), name.to_string_lossy());
            if entry.file_type()?.is_dir() {
                self.tree(&inner, &entry.path())?;
            } else {
                self.file(&inner, &entry.path());
            }
        }
        Ok(())
    }

    fn add(&mut self, path: &str, entry: Entry) {
        self.entries
            .insert(PathBuf::from(path.trim_start_matches('/')), entry);
    }

    /// Appends the archive, padded so that another can follow.
    pub(super) fn write(self, out: &mut Vec<u8>) -> Result<()> {
        let above: BTreeSet<PathBuf> = self
            .entries
            .keys()
            .flat_map(|path| path.ancestors().skip(1).map(Path::to_owned))
            .filter(|path| !path.as_os_str().is_empty())
            .collect();
        let mut entries = self.entries;
        for dir in above {
            entries.entry(dir).or_insert(Entry::Directory);
        }
        // The map is sorted by path components, so a directory comes before its contents.
        for (inode, (path, entry)) in (1_u32..).zip(entries) {
            let name = path.to_string_lossy();
            let header = Builder::new(&name).ino(inode).uid(0).gid(0);
            match entry {
                Entry::Directory => write_entry(
                    header
                        .set_mode_file_type(ModeFileType::Directory)
                        .mode(0o040_755),
                    &[],
                    out,
                ),
                Entry::File { content, mode } => {
                    let bytes = match content {
                        Content::Bytes(bytes) => bytes,
                        Content::From(source) => fs::read(&source)
                            .with_context(|| format!("cannot read {}", source.display()))?,
                    };
                    write_entry(header.mode(0o100_000 | mode), &bytes, out)
                }
            }
            .with_context(|| format!("cannot pack {name}"))?;
        }
        trailer(&mut *out).context("cannot end the archive")?;
        out.resize(out.len().next_multiple_of(ALIGN), 0);
        Ok(())
    }
}

fn write_entry(header: Builder, bytes: &[u8], out: &mut Vec<u8>) -> Result<()> {
    let size = u32::try_from(bytes.len()).context("larger than a cpio archive can hold")?;
    let mut writer = header.write(out, size);
    writer.write_all(bytes)?;
    writer.finish()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn read_back(mut bytes: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut seen = Vec::new();
        loop {
            let mut reader = cpio::newc::Reader::new(bytes).unwrap();
            if reader.entry().is_trailer() {
                return seen;
            }
            let (name, mode) = (reader.entry().name().to_owned(), reader.entry().mode());
            let mut content = Vec::new();
            reader.read_to_end(&mut content).unwrap();
            seen.push((name, mode, content));
            bytes = reader.finish().unwrap();
        }
    }

    #[test]
    fn directories_come_before_what_they_hold() {
        let mut archive = Archive::default();
        archive.bytes("/a/b/file", b"content".to_vec());
        archive.script("/init", "#!/bin/sh\n");
        archive.directory("/dev");
        let mut bytes = Vec::new();
        archive.write(&mut bytes).unwrap();
        assert_eq!(bytes.len() % ALIGN, 0);
        let entries = read_back(&bytes);
        let names: Vec<_> = entries.iter().map(|(name, ..)| name.as_str()).collect();
        assert_eq!(names, ["a", "a/b", "a/b/file", "dev", "init"]);
        let modes: Vec<_> = entries.iter().map(|(_, mode, _)| *mode).collect();
        assert_eq!(
            modes,
            [0o040_755, 0o040_755, 0o100_644, 0o040_755, 0o100_755]
        );
        assert_eq!(entries[2].2, b"content");
    }

    #[test]
    fn a_source_that_is_not_there_is_named() {
        let mut archive = Archive::default();
        archive.file("/x", Path::new("/nonexistent/y"));
        let error = archive.write(&mut Vec::new()).unwrap_err();
        assert_eq!(error.to_string(), "cannot read /nonexistent/y");
    }
}
