//! What there is to see of the devices of a VM.

use std::sync::{Arc, Mutex};

use iommu_group::Sbdf;
use p2p_vfio::{AssignedDevice, Choice, has_unshared};

use super::registry::Devices;
use crate::lock::lock;

/// A device of the VM.
#[derive(Clone, Copy)]
pub(crate) struct DeviceView<'a> {
    /// How the API calls it.
    pub(crate) id: &'a str,
    /// Where the guest found it first.
    pub(crate) bdf: Sbdf,
    pub(crate) device: &'a Arc<Mutex<AssignedDevice>>,
}

impl Devices {
    /// The devices that the VM has, those on their way out included.
    pub(crate) fn iter(&self) -> impl Iterator<Item = DeviceView<'_>> {
        self.list.iter().filter_map(|entry| {
            Some(DeviceView {
                id: entry.id(),
                bdf: entry.guest,
                device: entry.device.as_ref()?,
            })
        })
    }

    /// The kernel's interface that they are assigned by, and why; `None` before the first.
    pub(crate) fn choice(&self) -> Option<&Choice> {
        self.contexts.choice()
    }

    /// Whether some two of them are not peers.
    pub(crate) fn has_unshared(&self) -> bool {
        let attached = self.list.iter().filter(|entry| entry.device.is_some());
        has_unshared(attached.map(|entry| entry.candidate.domain.clone()))
    }

    /// How many windows peers have.
    pub(crate) fn peer_windows(&self) -> usize {
        let windows = |device: DeviceView<'_>| lock(device.device).peer_windows().count();
        self.iter().map(windows).sum()
    }
}
