//! Free bus resources for an added device: on the root bus of a VM or on the bus of a switch, as the guest has
//! programmed them.

use std::ops::RangeInclusive;

use guest_topology::{Apertures, BusResources, PortKind, Reserve, SlotBus};
use iommu_group::assignment::DeviceInfo;
use iommu_group::{Address, AddressRange, Gpa};

use crate::bus::BusUsage;

/// Device numbers of a bus.
const DEVICES_PER_BUS: u8 = 32;
/// Slots that a switch reserves for members that are added later.
const RESERVED_SLOTS: u8 = 16;
/// Bytes below 4 GiB that a switch reserves if its members can be at any address.
const RESERVED_MEMORY_BYTES: u64 = 32 << 20;
/// Part of the 64-bit window that a switch reserves then, at most [`MOST_PREFETCHABLE_BYTES`].
const RESERVED_PREFETCHABLE_SHARE: u64 = 16;
const MOST_PREFETCHABLE_BYTES: u64 = 256 << 30;

/// A bus without the resources that the guest uses on it. `root` is the empty root bus.
pub(super) fn live(bus: SlotBus, usage: &BusUsage, root: &BusResources) -> BusResources {
    let mut resources = match bus {
        SlotBus::Root => root.clone(),
        SlotBus::Switch(_) => inside_switch(usage),
    };
    let free = |device: &u8| !usage.devices.contains(device);
    resources.device_slots.retain(free);
    resources.switch_slots.retain(free);
    let (own, last) = usage.buses;
    let below = |n: &u8| *n > own && *n <= last && !usage.taken_buses.contains(n);
    resources.buses.retain(below);
    resources.taken.extend(&usage.windows);
    resources
}

/// The bus of a switch: everything must fit into the windows of its upstream port.
fn inside_switch(usage: &BusUsage) -> BusResources {
    let is_low = |window: &&AddressRange<Gpa>| window.end().value() <= 1 << 32;
    let low = usage.forwarded.iter().filter(is_low);
    BusResources {
        bus: usage.buses.0,
        ports: PortKind::Downstream,
        device_slots: (0..DEVICES_PER_BUS).collect(),
        switch_slots: Vec::new(),
        buses: (1..=u8::MAX).collect(),
        apertures: Apertures {
            memory: low.copied().collect(),
            prefetchable: usage.forwarded.clone(),
        },
        forwarded: usage.forwarded.clone(),
        taken: Vec::new(),
    }
}

/// What the switch of a domain reserves for members that are added later.
pub(super) fn reserve(info: &DeviceInfo, root: &BusResources) -> Reserve {
    let apertures = root.apertures.prefetchable.iter();
    let largest = apertures.map(AddressRange::len_bytes).max();
    let share = largest.unwrap_or(0) / RESERVED_PREFETCHABLE_SHARE;
    let prefetchable = share.clamp(1, MOST_PREFETCHABLE_BYTES);
    let bridges = info.bridges.iter();
    Reserve {
        slots: RESERVED_SLOTS,
        memory_bytes: RESERVED_MEMORY_BYTES,
        prefetchable_bytes: 1 << prefetchable.ilog2(),
        windows: bridges
            .map(|windows| windows.iter().filter_map(bus_range).collect())
            .collect(),
    }
}

/// The range at the same addresses in the guest.
pub(super) fn bus_range(range: &RangeInclusive<u64>) -> Option<AddressRange<Gpa>> {
    let len_bytes = range.end().checked_sub(*range.start())?.checked_add(1)?;
    AddressRange::new(Gpa::new(*range.start()), len_bytes)
}

/// The same addresses in the guest, extended to whole pages; the last page of all is left out.
pub(super) fn whole_pages(range: &RangeInclusive<u64>) -> Option<AddressRange<Gpa>> {
    const PAGE: u64 = 4096;
    let end = range.end().saturating_add(1).checked_next_multiple_of(PAGE);
    let end = end.unwrap_or(u64::MAX / PAGE * PAGE);
    AddressRange::between(Gpa::new(range.start() / PAGE * PAGE), Gpa::new(end))
}
