//! Free resources of a guest's bus.

use std::collections::BTreeSet;
use std::ops::Range;

use iommu_group::{AddressRange, Gpa};

use crate::PortKind;

/// Device numbers of a bus.
pub(crate) const DEVICES_PER_BUS: u8 = 32;

/// Device numbers on the root bus for switches. 0 is the host bridge.
///
/// The range is small because the guest's ACPI tables have a slot for each device number of each of these switches.
pub const SWITCH_SLOTS: Range<u8> = 1..9;

/// Address ranges for BARs without fixed addresses.
#[derive(Clone, Debug)]
pub struct Apertures {
    /// Below 4 GiB, for BARs that are not both 64-bit and prefetchable.
    pub memory: Vec<AddressRange<Gpa>>,
    /// For BARs that are 64-bit and prefetchable.
    pub prefetchable: Vec<AddressRange<Gpa>>,
}

/// Free resources of a guest's bus and of the buses below it.
#[derive(Clone, Debug)]
pub struct BusResources {
    /// The number of the bus.
    pub bus: u8,
    /// Kind of the ports on this bus: root ports on the root bus, downstream ports on the bus of a switch.
    pub ports: PortKind,
    /// Free device numbers for ports with a device, best first.
    pub device_slots: Vec<u8>,
    /// Free device numbers for ports with a switch, best first.
    pub switch_slots: Vec<u8>,
    /// Free bus numbers that are routed to this bus.
    pub buses: BTreeSet<u8>,
    /// Address ranges for BARs without fixed addresses.
    pub apertures: Apertures,
    /// All addresses that are forwarded to this bus.
    pub forwarded: Vec<AddressRange<Gpa>>,
    /// Windows of the existing ports.
    pub taken: Vec<AddressRange<Gpa>>,
}

impl BusResources {
    /// Resources of an empty root bus whose host bridge forwards `forwarded`.
    pub fn root(apertures: Apertures, forwarded: Vec<AddressRange<Gpa>>) -> Self {
        Self {
            bus: 0,
            ports: PortKind::Root,
            device_slots: (SWITCH_SLOTS.end..DEVICES_PER_BUS)
                .chain(SWITCH_SLOTS)
                .collect(),
            switch_slots: SWITCH_SLOTS.collect(),
            buses: (1..=u8::MAX).collect(),
            apertures,
            forwarded,
            taken: Vec::new(),
        }
    }
}
