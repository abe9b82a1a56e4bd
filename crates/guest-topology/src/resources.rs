//! What is free on a bus of a guest.

use std::collections::BTreeSet;
use std::ops::Range;

use iommu_group::{AddressRange, Gpa};

use crate::PortKind;

/// Device numbers of a bus.
pub(crate) const DEVICES_PER_BUS: u8 = 32;

/// Device numbers on the root bus that a switch can have. 0 is the host bridge.
///
/// There are few because each has a slot for every device number of a switch in the guest's ACPI tables.
pub const SWITCH_SLOTS: Range<u8> = 1..9;

/// Where BARs may be that can be anywhere.
#[derive(Clone, Debug)]
pub struct Apertures {
    /// Below 4 GiB: for BARs that are not both 64-bit and prefetchable.
    pub memory: Vec<AddressRange<Gpa>>,
    /// For BARs that are 64-bit and prefetchable.
    pub prefetchable: Vec<AddressRange<Gpa>>,
}

/// What is free on a bus of the guest and behind it.
#[derive(Clone, Debug)]
pub struct BusResources {
    /// The number of the bus.
    pub bus: u8,
    /// What is put on it: root ports on the root bus, downstream ports on that of a switch.
    pub ports: PortKind,
    /// Device numbers for ports with a device, best first.
    pub device_slots: Vec<u8>,
    /// Device numbers for ports with a switch, best first.
    pub switch_slots: Vec<u8>,
    /// Bus numbers that nobody has and that lead here.
    pub buses: BTreeSet<u8>,
    /// Addresses for what can be anywhere.
    pub apertures: Apertures,
    /// All addresses that lead here.
    pub forwarded: Vec<AddressRange<Gpa>>,
    /// Windows of the ports that are there already.
    pub taken: Vec<AddressRange<Gpa>>,
}

impl BusResources {
    /// An empty root bus, whose host bridge lets `forwarded` through.
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
