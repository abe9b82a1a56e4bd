//! Devices that are withheld from their VMs because other programs changed the host, and the facts that these devices depend
//! on.

use std::collections::BTreeSet;

use iommu_group::{AcsSetting, Exposure, GroupId, Sbdf};
use serde::{Deserialize, Serialize};

use super::vmm::VmDevice;

/// The facts about the host that a device depends on.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceFacts {
    /// The ports above it, the nearest first, with their ACS settings.
    pub path: Vec<(Sbdf, Option<AcsSetting>)>,
    /// The IOMMU group of the device.
    pub group: Option<GroupId>,
    /// Whether the device is assigned through VFIO.
    pub is_assigned: bool,
    /// The certain exposures of the device and its group, in both directions, each with one sender; `None` if the device is
    /// not assigned, or if they are to be computed.
    pub exposures: Option<BTreeSet<Exposure>>,
}

impl DeviceFacts {
    /// The exposures in `now` that are not in `self`.
    #[must_use]
    pub fn new_exposures(&self, now: &Self) -> BTreeSet<Exposure> {
        // The exposures at assignment were checked then.
        let (Some(was), Some(is)) = (&self.exposures, &now.exposures) else {
            return BTreeSet::new();
        };
        // The port does not matter.
        let pair = |exposure: &Exposure| (exposure.function, exposure.to.clone());
        let known: BTreeSet<_> = was.iter().map(pair).collect();
        let new = is
            .iter()
            .filter(|exposure| !known.contains(&pair(exposure)));
        new.cloned().collect()
    }
}

/// A device that is withheld from its VM until a check of the host permits its return.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WithheldDevice {
    /// The device, in its former form.
    pub device: VmDevice,
    /// Process ID of the VMM. A new VMM process has its own devices.
    pub vmm: i64,
    /// The facts at the last check that passed.
    pub good: DeviceFacts,
}
