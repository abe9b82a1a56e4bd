//! PCI functions in sysfs.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Offset of the command register, and its bits (PCI Local Bus 3.0 §6.2.2).
const COMMAND: u64 = 0x04;
const MEMORY_SPACE: u16 = 1 << 1;
const BUS_MASTER: u16 = 1 << 2;

/// A function.
pub(crate) struct Function {
    pub(crate) bdf: String,
    dir: PathBuf,
}

impl Function {
    /// Every function, in address order.
    pub(crate) fn all(root: &Path) -> io::Result<Vec<Self>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(root.join("bus/pci/devices"))? {
            let entry = entry?;
            found.push(Self {
                bdf: entry.file_name().to_string_lossy().into_owned(),
                dir: entry.path(),
            });
        }
        found.sort_by(|a, b| a.bdf.cmp(&b.bdf));
        Ok(found)
    }

    /// Every function of a vendor and device id, in address order.
    pub(crate) fn find(root: &Path, vendor: u16, device: u16) -> io::Result<Vec<Self>> {
        let mut found = Self::all(root)?;
        found.retain(|function| {
            let is = |file: &str, id: u16| {
                let text = fs::read_to_string(function.dir.join(file)).unwrap_or_default();
                text.trim() == format!("{id:#06x}")
            };
            is("vendor", vendor) && is("device", device)
        });
        Ok(found)
    }

    /// Its directory in sysfs.
    pub(crate) fn path(&self) -> &Path {
        &self.dir
    }

    /// Driver that the function is bound to.
    pub(crate) fn driver(&self) -> Option<PathBuf> {
        fs::read_link(self.dir.join("driver")).ok()
    }

    /// Flags of a BAR, as in the kernel (linux include/linux/ioport.h).
    pub(crate) fn bar_flags(&self, number: usize) -> io::Result<u64> {
        let text = fs::read_to_string(self.dir.join("resource"))?;
        let line = text.lines().nth(number).unwrap_or_default();
        let flags = line.split_ascii_whitespace().nth(2);
        let flags = flags.and_then(|flags| u64::from_str_radix(flags.strip_prefix("0x")?, 16).ok());
        flags.ok_or_else(|| io::Error::other(format!("{} has no BAR {number}", self.bdf)))
    }

    /// Powers the function up and enables memory decode and DMA.
    pub(crate) fn enable(&self) -> io::Result<()> {
        fs::write(self.dir.join("enable"), "1")?;
        let config = self.config()?;
        let mut command = [0; 2];
        config.read_exact_at(&mut command, COMMAND)?;
        let command = u16::from_le_bytes(command) | MEMORY_SPACE | BUS_MASTER;
        config.write_all_at(&command.to_le_bytes(), COMMAND)
    }

    /// Opens its configuration space, which bypasses the kernel's drivers.
    pub(crate) fn config(&self) -> io::Result<File> {
        self.open("config")
    }

    /// Writes a file of the function in sysfs.
    pub(crate) fn write(&self, file: &str, text: &str) -> io::Result<()> {
        let why = |error| io::Error::other(format!("{}: {text:?} into {file}: {error}", self.bdf));
        fs::write(self.dir.join(file), text).map_err(why)
    }

    /// The bridges above it, nearest first.
    pub(crate) fn bridges(&self) -> io::Result<Vec<Self>> {
        let path = fs::canonicalize(&self.dir)?;
        let above = path.ancestors().skip(1);
        let is_bridge = |dir: &&Path| dir.join("config").exists();
        Ok(above
            .take_while(is_bridge)
            .map(|dir| Self {
                bdf: dir
                    .file_name()
                    .unwrap_or_default()
                    .to_string_lossy()
                    .into_owned(),
                dir: dir.to_owned(),
            })
            .collect())
    }

    /// Address and size of BAR 0, and the file that maps it.
    pub(crate) fn bar0(&self) -> io::Result<(u64, u64, File)> {
        self.bar(0)
    }

    /// Address and size of a BAR, and the file that maps it.
    pub(crate) fn bar(&self, number: usize) -> io::Result<(u64, u64, File)> {
        let text = fs::read_to_string(self.dir.join("resource"))?;
        let (start, size) = text
            .lines()
            .nth(number)
            .and_then(parse_resource)
            .ok_or_else(|| io::Error::other(format!("{} has no BAR {number}", self.bdf)))?;
        let file = self.open(&format!("resource{number}"))?;
        Ok((start, size, file))
    }

    fn open(&self, file: &str) -> io::Result<File> {
        OpenOptions::new()
            .read(true)
            .write(true)
            .open(self.dir.join(file))
    }
}

/// Start and size from a line `0x… 0x… 0x…`: first address, last address, flags.
fn parse_resource(line: &str) -> Option<(u64, u64)> {
    let mut words = line.split_ascii_whitespace();
    let mut word = || u64::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok();
    let (start, last) = (word()?, word()?);
    (start != 0).then_some((start, last.checked_sub(start)?.checked_add(1)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resource_line_gives_start_and_size() {
        let line = "0x00000000fe800000 0x00000000fe8fffff 0x0000000000040200";
        assert_eq!(parse_resource(line), Some((0xfe80_0000, 0x10_0000)));
        assert_eq!(parse_resource("0x0 0x0 0x0"), None);
        assert_eq!(parse_resource("0x2000 0x1000 0x0"), None);
        assert_eq!(
            parse_resource("0x1000 0xffffffffffffffff"),
            Some((0x1000, u64::MAX - 0xfff))
        );
    }

    #[test]
    fn functions_are_found_by_their_ids_in_order() {
        let root = tempfile::tempdir().unwrap();
        for (bdf, device) in [
            ("0000:02:00.0", "0x11e8"),
            ("0000:01:00.0", "0x11e8"),
            ("0000:00:00.0", "0x29c0"),
        ] {
            let dir = root.path().join("bus/pci/devices").join(bdf);
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("vendor"), "0x1234\n").unwrap();
            fs::write(dir.join("device"), format!("{device}\n")).unwrap();
        }
        let found = Function::find(root.path(), 0x1234, 0x11e8).unwrap();
        let found: Vec<_> = found.into_iter().map(|function| function.bdf).collect();
        assert_eq!(found, ["0000:01:00.0", "0000:02:00.0"]);
    }
}
