//! A view of the devices of a VM, for the API.

use std::sync::{Arc, Mutex};

use iommu_group::Sbdf;
use iommu_group::assignment::has_unshared;
use p2p_vfio::{AssignedDevice, Choice};

use super::registry::Devices;
use crate::lock::lock;

/// A device of the VM.
#[derive(Clone, Copy)]
pub(crate) struct DeviceView<'a> {
    /// Its id in the API.
    pub(crate) id: &'a str,
    /// Its first address in the guest.
    pub(crate) bdf: Sbdf,
    pub(crate) device: &'a Arc<Mutex<AssignedDevice>>,
}

impl Devices {
    /// The open devices of the VM, including those that are about to be removed.
    pub(crate) fn iter(&self) -> impl Iterator<Item = DeviceView<'_>> {
        self.list.iter().filter_map(|entry| {
            Some(DeviceView {
                id: entry.id(),
                bdf: entry.guest,
                device: entry.device.as_ref()?,
            })
        })
    }

    /// The kernel interface for the devices, and why it was chosen; `None` before the first device.
    pub(crate) fn choice(&self) -> Option<&Choice> {
        self.contexts.choice()
    }

    /// Whether any two of them are not peers.
    pub(crate) fn has_unshared(&self) -> bool {
        let attached = self.list.iter().filter(|entry| entry.device.is_some());
        has_unshared(attached.map(|entry| entry.info.domain.clone()))
    }

    /// Number of BAR mappings for peers.
    pub(crate) fn peer_windows(&self) -> usize {
        let windows = |device: DeviceView<'_>| lock(device.device).peer_windows().count();
        self.iter().map(windows).sum()
    }
}
