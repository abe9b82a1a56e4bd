//! The paths that devices are given by.

use std::collections::BTreeSet;

use hotplug::DeviceConfig;
use iommu_group::Sysfs;
use p2p_vfio::{Reason, Refusal};

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
