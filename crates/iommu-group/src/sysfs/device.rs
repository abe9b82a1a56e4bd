//! Conversion of a user's text or path to a PCI function, and lookup of its driver.

use std::fs;
use std::io;
use std::path::Path;

use super::error::is_missing;
use super::{Sysfs, SysfsError};
use crate::Sbdf;

impl Sysfs {
    /// Returns the PCI function of a path: its directory in sysfs, or a link or alias to it
    /// (`/sys/class/net/eth0/device`, a udev link, a relative path).
    pub fn resolve(&self, path: &Path) -> Result<Sbdf, SysfsError> {
        let target = fs::canonicalize(path).map_err(|error| {
            if is_missing(&error) {
                SysfsError::NoSuchPath {
                    path: path.to_owned(),
                }
            } else {
                SysfsError::io("resolve", path)(error)
            }
        })?;
        let dir = self.devices_dir();
        let not_pci = || SysfsError::NotPci {
            path: path.to_owned(),
            target: target.clone(),
            dir: dir.clone(),
        };
        let name = target.file_name().and_then(|n| n.to_str());
        let sbdf: Sbdf = name.and_then(|n| n.parse().ok()).ok_or_else(not_pci)?;
        // The name is not sufficient: the function with that name must have the same directory.
        match fs::canonicalize(self.device_dir(sbdf)) {
            Ok(listed) if listed == target => Ok(sbdf),
            Ok(_) => Err(not_pci()),
            Err(error) if is_missing(&error) => Err(not_pci()),
            Err(error) => Err(SysfsError::io("resolve", &self.device_dir(sbdf))(error)),
        }
    }

    /// Returns the PCI function for a command-line argument: an address as printed by `lspci`, or a path.
    pub fn find(&self, text: &str) -> Result<Sbdf, SysfsError> {
        match text.parse() {
            Ok(sbdf) => self.must_exist(sbdf).map(|()| sbdf),
            Err(_) => self.resolve(Path::new(text)),
        }
    }

    /// Returns an error if there is no such function.
    pub fn must_exist(&self, sbdf: Sbdf) -> Result<(), SysfsError> {
        let path = self.device_dir(sbdf);
        match fs::metadata(&path) {
            Ok(_) => Ok(()),
            Err(error) if is_missing(&error) => Err(SysfsError::NoSuchFunction {
                sbdf,
                dir: self.devices_dir(),
            }),
            Err(error) => Err(SysfsError::io("look up", &path)(error)),
        }
    }

    /// The driver bound to a function. `None` if there is none.
    pub fn driver_of(&self, sbdf: Sbdf) -> Result<Option<String>, SysfsError> {
        self.must_exist(sbdf)?;
        link_name(&self.device_dir(sbdf).join("driver"))
    }
}

/// The last component of a link's target. `None` if there is no link.
pub(super) fn link_name(link: &Path) -> Result<Option<String>, SysfsError> {
    match fs::read_link(link) {
        Ok(target) => Ok(target
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())),
        // EINVAL: the file exists but is not a link.
        Err(error) if is_missing(&error) || error.kind() == io::ErrorKind::InvalidInput => Ok(None),
        Err(error) => Err(SysfsError::io("read the link", link)(error)),
    }
}
