//! Plugs open devices into the guest's PCI tree, each below a port of its own.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use guest_topology::{BusResources, GuestTopology, PlacedEndpoint, Slot, SlotBus, VirtualPort};
use iommu_group::assignment::DeviceInfo;
use iommu_group::{AddressRange, Gpa, HoleCause, MemoryHole, Placement, Sbdf};

use crate::bus::{PciBus, PciError, SharedFunction};
use crate::claims::Claims;
use crate::device::{AssignedDevice, Clique, DeviceParams, HostDevice};

use super::events::DeviceEvents;
use super::{DeviceSetError, VmHooks};

/// The guest as devices are plugged into it.
pub(super) struct Guest {
    pub(super) hooks: VmHooks,
    pub(super) bus: PciBus,
    pub(super) claims: Arc<Claims>,
    pub(super) events: Arc<DeviceEvents>,
    /// The root bus without devices.
    pub(super) root: BusResources,
}

/// An open device before it is plugged.
pub(super) struct Opened {
    pub(super) host: HostDevice,
    pub(super) clique: Option<Clique>,
}

/// A device that is plugged into the guest.
pub(super) struct SlotContents {
    pub(super) device: Arc<Mutex<AssignedDevice>>,
    /// The slot of the port directly above it.
    pub(super) slot: Slot,
    /// The slot that is announced to the guest.
    pub(super) announced_slot: Slot,
    /// Its address in the guest, as it is plugged.
    pub(super) guest: Sbdf,
}

/// Places a device at its bus addresses although that is not required yet: a peer that is added later may require it,
/// if a port above routes by address.
pub(super) fn prefer_bus_address(mut info: DeviceInfo) -> DeviceInfo {
    let by_address = |hole: &MemoryHole| hole.cause != HoleCause::Switch;
    if info.domain.is_some() && info.holes.iter().any(by_address) {
        info.placement = Placement::AtBusAddress;
    }
    info
}

/// The slots of a placed endpoint on its path from `bus`: the topmost one, which is plugged, and that of the port
/// directly above it.
pub(super) fn slots_of(place: &PlacedEndpoint, bus: SlotBus) -> Option<(Slot, Slot)> {
    let top = Slot::new(bus, place.ports.first()?.device())?;
    let own = match (bus, place.ports.as_slice()) {
        (SlotBus::Root, [_, _, member]) => {
            Slot::new(SlotBus::Switch(top.device()), member.device())?
        }
        _ => top,
    };
    Some((top, own))
}

impl Guest {
    /// Attaches open devices and plugs them, with their ports, as `topology` says. BARs are placed and decoded here, so
    /// that errors appear now and not in the guest.
    pub(super) fn plug(
        &self,
        opened: Vec<Opened>,
        topology: GuestTopology,
        bus: SlotBus,
    ) -> Result<Vec<SlotContents>, DeviceSetError> {
        let GuestTopology { ports, endpoints } = topology;
        let mut plugged: Vec<SlotContents> = Vec::new();
        let mut tops = BTreeSet::new();
        let mut functions: Vec<(Sbdf, SharedFunction)> = Vec::new();
        for (opened, place) in opened.into_iter().zip(endpoints) {
            let (top, slot) = slots_of(&place, bus).ok_or(PciError::NoSuchBus(place.sbdf))?;
            let above = ports.iter().find(|(at, _)| place.ports.last() == Some(at));
            let mmio = above.map(|(_, port)| port.windows().collect());
            let device = self.attach(opened, slot, mmio.unwrap_or_default(), &place)?;
            let device = Arc::new(Mutex::new(device));
            functions.push((place.sbdf, device.clone()));
            tops.insert(top);
            plugged.push(SlotContents {
                device,
                slot,
                announced_slot: top,
                guest: place.sbdf,
            });
        }
        let port = |(at, port): (Sbdf, VirtualPort)| -> (Sbdf, SharedFunction) {
            (at, Arc::new(Mutex::new(port)))
        };
        let functions = ports.into_iter().map(port).chain(functions).collect();
        let tops: Vec<Slot> = tops.into_iter().collect();
        self.bus.plug(&tops, functions)?;
        Ok(plugged)
    }

    fn attach(
        &self,
        opened: Opened,
        slot: Slot,
        mmio: Vec<AddressRange<Gpa>>,
        place: &PlacedEndpoint,
    ) -> Result<AssignedDevice, DeviceSetError> {
        let params = DeviceParams {
            slots: self.hooks.slots.clone(),
            claims: self.claims.clone(),
            msi: self.hooks.msi.clone(),
            vector_fds: self.hooks.vector_fds,
            intx: self.hooks.intx.as_ref().map(|line| line(slot)),
            events: self.events.clone(),
            clique: opened.clique,
            mmio,
        };
        let mut device = AssignedDevice::new(opened.host, params)?;
        log::info!("{} is {} in the guest", device.sbdf(), place.sbdf);
        for (bar, gpa) in &place.bars {
            device.place_bar(bar, *gpa)?;
        }
        device.enable_memory()?;
        Ok(device)
    }
}
