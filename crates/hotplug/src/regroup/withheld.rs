//! Devices that VMs are without because of what others did to the host, and what these devices depend on.

use std::collections::BTreeSet;

use iommu_group::{AcsSetting, Exposure, GroupId, Sbdf};
use serde::{Deserialize, Serialize};

use super::vmm::Assigned;

/// What a device depends on.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceFacts {
    /// The ports above it, the nearest first, with their ACS settings.
    pub path: Vec<(Sbdf, Option<AcsSetting>)>,
    /// Its group.
    pub group: Option<GroupId>,
    /// Whether VFIO has it.
    pub is_assigned: bool,
    /// Whom it or its group reaches for certain, and who reaches it, each with one sender; `None` if VFIO does not have it,
    /// or if they are to be computed.
    pub exposures: Option<BTreeSet<Exposure>>,
}

impl DeviceFacts {
    /// The exposures that there are now and were not.
    #[must_use]
    pub fn new_exposures(&self, now: &Self) -> BTreeSet<Exposure> {
        // What a device had when it was assigned was looked at then.
        let (Some(was), Some(is)) = (&self.exposures, &now.exposures) else {
            return BTreeSet::new();
        };
        // Through which port is another matter.
        let pair = |exposure: &Exposure| (exposure.function, exposure.to.clone());
        let known: BTreeSet<_> = was.iter().map(pair).collect();
        let new = is
            .iter()
            .filter(|exposure| !known.contains(&pair(exposure)));
        new.cloned().collect()
    }
}

/// A device that a VM is without until a check of the host allows it to come back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WithheldDevice {
    /// The device, as the VM had it.
    pub device: Assigned,
    /// The process of the VMM: another one has devices of its own.
    pub vmm: i64,
    /// What it depended on when it was last good.
    pub good: DeviceFacts,
}
