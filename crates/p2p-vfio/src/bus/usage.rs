//! Resources in use on a bus with slots, as the guest has programmed them: the constraints for the next device.

use std::collections::BTreeSet;
use std::sync::PoisonError;

use guest_topology::SlotBus;
use iommu_group::{AddressRange, Gpa};

use super::{PciBus, children, slot_bus};
use crate::lock::lock;

/// Resources in use on a bus with slots.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct BusUsage {
    /// Its number, and the subordinate bus number.
    pub(crate) buses: (u8, u8),
    /// Bus numbers below the ports on it.
    pub(crate) taken_buses: BTreeSet<u8>,
    /// Device numbers in use.
    pub(crate) devices: BTreeSet<u8>,
    /// The windows of the bridge above it, open or as they were last open.
    pub(crate) forwarded: Vec<AddressRange<Gpa>>,
    /// The windows of the ports on it, open or as they were last open.
    pub(crate) windows: Vec<AddressRange<Gpa>>,
}

impl PciBus {
    /// Reads the resources in use on `bus`; `None` if its switch does not exist.
    pub(crate) fn bus_usage(&self, bus: SlotBus) -> Option<BusUsage> {
        let nodes = self.nodes.read().unwrap_or_else(PoisonError::into_inner);
        let logical_bus = slot_bus(&nodes, bus)?;
        let mut usage = BusUsage {
            buses: (0, u8::MAX),
            forwarded: self.windows.clone(),
            ..BusUsage::default()
        };
        if bus != SlotBus::Root {
            let bridge = nodes.values().find(|node| node.below == logical_bus)?;
            let bridge = lock(&bridge.function);
            let buses = bridge.buses_below()?;
            usage.buses = (*buses.start(), *buses.end());
            usage.forwarded = bridge.last_windows();
        }
        let on_bus = nodes.range((logical_bus, u8::MIN, u8::MIN)..=(logical_bus, u8::MAX, u8::MAX));
        usage.devices = on_bus.map(|((_, device, _), _)| *device).collect();
        for node in children(&nodes, logical_bus) {
            let function = lock(&node.function);
            usage
                .taken_buses
                .extend(function.buses_below().into_iter().flatten());
            usage.windows.extend(function.last_windows());
        }
        Some(usage)
    }
}
