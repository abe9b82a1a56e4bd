//! Devices that come and go while the guest runs.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use hotplug::DeviceConfig;
use hotplug::api::{BarKind, Counters, DeviceNode, DeviceTree, Resource};
use iommu_group::SysfsError;
use p2p_vfio::{Address, Refusal};

use super::machine::Machine;
use super::watch::Watch;
use crate::lock::lock;
use crate::pci::Bdf;

/// Where a device came to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Plugged {
    /// Where the guest finds it.
    pub(super) bdf: Bdf,
}

/// Why a device was not added. Nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub(super) enum AddError {
    /// Policy or hardware forbid it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The host does not have it.
    #[error(transparent)]
    Host(#[from] SysfsError),
    /// It was tried and did not work.
    #[error(transparent)]
    Failed(#[from] anyhow::Error),
    /// This guest has no slots.
    #[error("this guest has no slots for devices that come later: give it with --device")]
    NoSlots,
}

/// How a device is to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RemoveOptions {
    /// How long the guest may take.
    pub(super) timeout: Duration,
    /// Whether it is taken away when the time is up.
    pub(super) force: bool,
}

/// Why a device was not asked for.
#[derive(Debug, thiserror::Error)]
pub(super) enum RemoveError {
    /// No device has this name.
    #[error("there is no device {0:?}")]
    Unknown(String),
    /// This guest has no slots.
    #[error("this guest has no slots: its devices stay until it ends")]
    NoSlots,
}

impl Machine {
    /// Adds a device to the running guest, whose name is `config.id`; it is watched from then on.
    pub(super) fn add_device(
        &mut self,
        _config: &DeviceConfig,
        _watch: &mut Watch,
    ) -> Result<Plugged, AddError> {
        Err(AddError::NoSlots)
    }

    /// Asks the guest to let go of a device. What comes of it is told by [`heed`](Self::heed).
    pub(super) fn remove_device(
        &mut self,
        id: &str,
        _options: RemoveOptions,
    ) -> Result<(), RemoveError> {
        if !self.devices.iter().any(|assigned| assigned.id == id) {
            return Err(RemoveError::Unknown(id.to_owned()));
        }
        Err(RemoveError::NoSlots)
    }

    /// Does what the guest or the time asks for. Called whenever the event loop has woken up; what it watches must wake
    /// it. The names are those of devices that are gone and free for the host.
    pub(super) fn heed(&mut self, _watch: &mut Watch) -> Vec<String> {
        Vec::new()
    }

    /// When [`heed`](Self::heed) wants to be called at the latest.
    pub(super) fn deadline(&self) -> Option<Instant> {
        None
    }

    /// The devices in the guest, and what they occupy there.
    pub(super) fn device_tree(&self) -> DeviceTree {
        let nodes = self.devices.iter().map(|assigned| {
            let device = lock(&assigned.device);
            let resources = device.live_bars().map(|(bar, range)| Resource::PciBar {
                index: bar.index,
                base: range.start().value(),
                size: bar.size_bytes,
                type_: if bar.is_64bit {
                    BarKind::Mmio64
                } else {
                    BarKind::Mmio32
                },
                prefetchable: bar.prefetchable,
            });
            let node = DeviceNode {
                id: assigned.id.clone(),
                resources: resources.collect(),
                parent: None,
                children: Vec::new(),
                pci_bdf: Some(assigned.bdf.to_string()),
            };
            (assigned.id.clone(), node)
        });
        nodes.collect()
    }

    /// What there is to count of each device.
    pub(super) fn counters(&self) -> Counters {
        let devices = self.devices.iter().map(|assigned| {
            let device = lock(&assigned.device);
            let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
            let counters = BTreeMap::from([
                ("windows".to_owned(), count(device.live_bars().count())),
                (
                    "peer_windows".to_owned(),
                    count(device.peer_windows().count()),
                ),
            ]);
            (assigned.id.clone(), counters)
        });
        devices.collect()
    }
}
