//! The paths in the description of a VM.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::ErrorKind;

use hotplug::api::Failure;
use hotplug::{DeviceConfig, PayloadConfig};
use iommu_group::Sysfs;
use p2p_vfio::{Reason, Refusal};

use crate::confine::Confinement;

/// Checks that what the VM boots can be read.
pub(super) fn check_payload(
    payload: &PayloadConfig,
    confinement: &Confinement,
) -> Result<(), Failure> {
    for path in [Some(&payload.kernel), payload.initramfs.as_ref()] {
        if let Some(path) = path
            && let Err(error) = File::open(path)
        {
            let mut reason = error.to_string();
            if error.kind() == ErrorKind::PermissionDenied && confinement.keeps_files() {
                reason += "; after its first VM this VMM opens only what that had, and what --landlock-rules \
                           path=PATH,access=r allows";
            }
            let path = path.display().to_string();
            return Err(Failure::NoSuchFile { path, reason });
        }
    }
    Ok(())
}

/// Checks that every path is that of a PCI function of this host, and none an alias of another.
///
/// What is no PCI function is a [`SysfsError`](iommu_group::SysfsError), what is given twice a [`Refusal`].
pub(super) fn check(devices: &[DeviceConfig]) -> anyhow::Result<()> {
    let sysfs = Sysfs::default();
    let mut seen = BTreeSet::new();
    for device in devices {
        let directory = device.directory().map_err(Failure::from)?;
        let sbdf = sysfs.resolve(directory)?;
        if !seen.insert(sbdf) {
            let reasons = vec![Reason::Twice(sbdf)];
            return Err(Refusal { reasons }.into());
        }
    }
    Ok(())
}
