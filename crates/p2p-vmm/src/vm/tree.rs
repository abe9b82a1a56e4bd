//! The devices of a machine in the API's format.

use std::collections::BTreeMap;

use iommu_group::Address;
use vmm_api::{BarKind, Counters, DeviceNode, DeviceTree, Resource};

use super::machine::Machine;
use crate::lock::lock;

impl Machine {
    /// The devices in the guest, with the ranges of their BARs.
    pub(super) fn device_tree(&self) -> DeviceTree {
        let nodes = self.devices.iter().map(|assigned| {
            let device = lock(assigned.device);
            let resources = device.live_bars().map(|(bar, range)| Resource::PciBar {
                index: bar.index,
                base: range.start().value(),
                size: bar.size_bytes,
                type_: if bar.is_64bit() {
                    BarKind::Mmio64
                } else {
                    BarKind::Mmio32
                },
                prefetchable: bar.prefetchable,
            });
            let node = DeviceNode {
                id: assigned.id.to_owned(),
                resources: resources.collect(),
                parent: None,
                children: Vec::new(),
                pci_bdf: Some(assigned.bdf.to_string()),
            };
            (assigned.id.to_owned(), node)
        });
        nodes.collect()
    }

    /// The counters of each device.
    pub(super) fn counters(&self) -> Counters {
        let devices = self.devices.iter().map(|assigned| {
            let device = lock(assigned.device);
            let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
            let counters = BTreeMap::from([
                ("windows".to_owned(), count(device.live_bars().count())),
                (
                    "peer_windows".to_owned(),
                    count(device.peer_windows().count()),
                ),
            ]);
            (assigned.id.to_owned(), counters)
        });
        devices.collect()
    }
}
