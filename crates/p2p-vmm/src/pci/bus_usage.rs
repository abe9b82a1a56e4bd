//! What is taken on a bus with slots, as the guest has programmed it: the ground for what comes next.

use std::collections::BTreeSet;
use std::sync::PoisonError;

use hotplug::SlotBus;
use p2p_vfio::{AddressRange, Gpa};

use super::bus::{PciBus, children, slot_bus};
use crate::lock::lock;

/// A bus with slots.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct BusUsage {
    /// Its number, and the last of those behind it.
    pub(crate) buses: (u8, u8),
    /// Bus numbers that ports on it lead to.
    pub(crate) taken_buses: BTreeSet<u8>,
    /// Device numbers in use.
    pub(crate) devices: BTreeSet<u8>,
    /// What the bridge above it lets through, or did before the guest looked at it.
    pub(crate) forwarded: Vec<AddressRange<Gpa>>,
    /// Windows of the ports on it, those included that the guest has closed for the moment.
    pub(crate) windows: Vec<AddressRange<Gpa>>,
}

impl PciBus {
    /// Looks at `bus`; `None` if its switch is not there.
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
