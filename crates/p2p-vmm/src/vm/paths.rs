//! Checks of the paths in a VM's configuration.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::path::Path;

use iommu_group::assignment::{Reason, Refusal};
use iommu_group::{Sbdf, Sysfs};
use p2p_vfio::DeviceSetError;
use vmm_api::{DeviceConfig, Failure, PayloadConfig};

use crate::error::VmmError;
use crate::sandbox::Sandbox;

/// Checks that the kernel and the initramfs can be read.
pub(super) fn check_payload(payload: &PayloadConfig, sandbox: &Sandbox) -> Result<(), Failure> {
    for path in [Some(&payload.kernel), payload.initramfs.as_ref()] {
        if let Some(path) = path
            && let Err(error) = can_read(path)
        {
            let mut reason = error.to_string();
            if error.kind() == ErrorKind::PermissionDenied && sandbox.files_restricted() {
                reason += "; after its first VM this VMM can open only the files of that VM and those that --landlock-rules \
                           path=PATH,access=r allows";
            }
            let path = path.display().to_string();
            return Err(Failure::NoSuchFile { path, reason });
        }
    }
    Ok(())
}

/// Opens a file that is not a directory: a directory can be opened but not read.
fn can_read(path: &Path) -> io::Result<()> {
    match File::open(path)?.metadata()?.is_dir() {
        false => Ok(()),
        true => Err(ErrorKind::IsADirectory.into()),
    }
}

/// The function of a device, from the name of its directory. The device itself may be gone.
pub(super) fn function(device: &DeviceConfig) -> Option<Sbdf> {
    let directory = device.directory().ok()?;
    let name = |path: &Path| path.file_name()?.to_str()?.parse().ok();
    name(directory).or_else(|| name(&directory.canonicalize().ok()?))
}

/// Checks that every path is that of a PCI function of this host and that no function is given twice.
pub(super) fn check(devices: &[DeviceConfig]) -> Result<(), VmmError> {
    let sysfs = Sysfs::default();
    let mut seen = BTreeSet::new();
    for device in devices {
        let directory = device.directory().map_err(Failure::from)?;
        let sbdf = sysfs.resolve(directory)?;
        if !seen.insert(sbdf) {
            return Err(DeviceSetError::from(Refusal::from(Reason::Twice(sbdf))).into());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_not_a_readable_file() {
        let dir = tempfile::tempdir().unwrap();
        let kernel = dir.path().join("kernel");
        let error = |path: &Path| can_read(path).map_err(|error| error.kind());
        assert_eq!(error(&kernel), Err(ErrorKind::NotFound));
        assert_eq!(error(dir.path()), Err(ErrorKind::IsADirectory));
        std::fs::write(&kernel, "x").unwrap();
        assert_eq!(error(&kernel), Ok(()));
    }
}
