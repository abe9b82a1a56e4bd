//! The paths in the description of a VM.

use std::collections::BTreeSet;
use std::fs::File;

use hotplug::api::Failure;
use hotplug::{DeviceConfig, PayloadConfig};
use iommu_group::Sysfs;
use p2p_vfio::{Reason, Refusal};

/// Checks that what the VM boots can be read.
pub(super) fn check_payload(payload: &PayloadConfig) -> Result<(), Failure> {
    for path in [Some(&payload.kernel), payload.initramfs.as_ref()] {
        if let Some(path) = path
            && let Err(error) = File::open(path)
        {
            return Err(Failure::NoSuchFile {
                path: path.display().to_string(),
                reason: error.to_string(),
            });
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
        let sbdf = sysfs.resolve(&device.path)?;
        if !seen.insert(sbdf) {
            let reasons = vec![Reason::Twice(sbdf)];
            return Err(Refusal { reasons }.into());
        }
    }
    Ok(())
}
