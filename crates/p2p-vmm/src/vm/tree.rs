//! The devices of a machine in the API's format.

use std::collections::BTreeMap;

use iommu_group::Address;
use p2p_vfio::AssignedDevice;
use vmm_api::{BarKind, Counters, DeviceNode, DeviceTree, Resource};

use super::machine::Machine;

impl Machine {
    /// The devices in the guest, with the ranges of their BARs.
    pub(super) fn device_tree(&self) -> DeviceTree {
        let set = self.devices.set();
        let nodes = set.members().into_iter().filter_map(|member| {
            let node = DeviceNode {
                id: member.tag.clone(),
                resources: set.with_device(&member.tag, |device| resources(device))?,
                parent: None,
                children: Vec::new(),
                pci_bdf: Some(member.guest.to_string()),
            };
            Some((member.tag, node))
        });
        nodes.collect()
    }

    /// The counters of each device.
    pub(super) fn counters(&self) -> Counters {
        let set = self.devices.set();
        let devices = set.members().into_iter().filter_map(|member| {
            let counts = set.with_device(&member.tag, |device| {
                [device.live_bars().count(), device.peer_windows().count()]
            })?;
            let [windows, peer_windows] =
                counts.map(|number| u64::try_from(number).unwrap_or(u64::MAX));
            let counters = BTreeMap::from([
                ("windows".to_owned(), windows),
                ("peer_windows".to_owned(), peer_windows),
            ]);
            Some((member.tag, counters))
        });
        devices.collect()
    }
}

fn resources(device: &AssignedDevice) -> Vec<Resource> {
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
    resources.collect()
}
