//! The contents of a slot: a port with everything below it, made for an open device.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use anyhow::Context;
use guest_topology::{Endpoint, GuestTopology, PlacedEndpoint, VirtualPort};
use hotplug::{Slot, SlotBus};
use iommu_group::assignment::DeviceInfo;
use iommu_group::{AddressRange, Gpa, HoleCause, MemoryHole, Placement, Sbdf};
use p2p_vfio::{AssignedDevice, Clique, DeviceParams, HostDevice};
use vm_memory::GuestMemoryMmap;

use super::events::DeviceEvents;
use crate::descriptors::Descriptors;
use crate::error::VmmError;
use crate::irq::{KvmLine, KvmRoutes};
use crate::layout::Layout;
use crate::pci::{Bdf, PciBus, SharedFunction, gsi_of_slot};
use crate::slot_control::SlotControl;
use crate::slots::KvmSlots;

/// The VM that devices are assigned to.
#[derive(Clone)]
pub(crate) struct Guest {
    pub(crate) memory: GuestMemoryMmap,
    pub(crate) layout: Layout,
    pub(crate) slots: Arc<KvmSlots>,
    pub(crate) routes: Arc<KvmRoutes>,
    pub(crate) pci: Arc<PciBus>,
    pub(crate) control: Arc<SlotControl>,
    pub(crate) descriptors: Descriptors,
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

/// The endpoint of an open device, for resource assignment. `fixed` places it at its bus addresses.
pub(super) fn endpoint(device: &HostDevice, fixed: bool) -> Endpoint {
    device.endpoint().clone().placed(match fixed {
        true => Placement::AtBusAddress,
        false => Placement::Anywhere,
    })
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
    /// Assigns open devices to the guest and plugs them, with their ports, as `topology` says. BARs are placed and
    /// decoded here, so that errors appear now and not in the guest.
    pub(super) fn plug(
        &self,
        opened: Vec<Opened>,
        topology: GuestTopology,
        bus: SlotBus,
        events: &Arc<DeviceEvents>,
    ) -> Result<Vec<SlotContents>, VmmError> {
        let GuestTopology { ports, endpoints } = topology;
        let mut plugged: Vec<SlotContents> = Vec::new();
        let mut tops = BTreeSet::new();
        let mut functions: Vec<(Bdf, SharedFunction)> = Vec::new();
        for (opened, place) in opened.into_iter().zip(endpoints) {
            let (top, slot) = slots_of(&place, bus)
                .with_context(|| format!("no slot leads to {}", place.sbdf))?;
            let above = ports.iter().find(|(at, _)| place.ports.last() == Some(at));
            let mmio = above.map(|(_, port)| port.windows().collect());
            let device = self.assign(opened, slot, mmio.unwrap_or_default(), &place, events)?;
            let device = Arc::new(Mutex::new(device));
            functions.push((Bdf::from(place.sbdf), device.clone()));
            tops.insert(top);
            plugged.push(SlotContents {
                device,
                slot,
                announced_slot: top,
                guest: place.sbdf,
            });
        }
        let port = |(at, port): (Sbdf, VirtualPort)| -> (Bdf, SharedFunction) {
            (Bdf::from(at), Arc::new(Mutex::new(port)))
        };
        let functions = ports.into_iter().map(port).chain(functions).collect();
        let tops: Vec<Slot> = tops.into_iter().collect();
        self.pci.plug(&tops, functions).map_err(VmmError::failed)?;
        for slot in tops.iter().copied().chain(plugged.iter().map(|p| p.slot)) {
            self.control.occupy(slot);
        }
        Ok(plugged)
    }

    fn assign(
        &self,
        opened: Opened,
        slot: Slot,
        mmio: Vec<AddressRange<Gpa>>,
        place: &PlacedEndpoint,
        events: &Arc<DeviceEvents>,
    ) -> Result<AssignedDevice, VmmError> {
        let line = KvmLine::new(self.routes.clone(), gsi_of_slot(slot));
        let params = DeviceParams {
            slots: self.slots.clone(),
            msi: self.routes.clone(),
            vector_fds: self.descriptors.vectors,
            intx: Some(Arc::new(line)),
            events: events.clone(),
            clique: opened.clique,
            mmio,
        };
        let mut device = AssignedDevice::new(opened.host, params)?;
        log::info!("{} is {} in the guest", device.sbdf(), place.sbdf);
        for (bar, gpa) in &place.bars {
            device.place_bar(bar, *gpa).map_err(VmmError::failed)?;
        }
        device.enable_memory()?;
        Ok(device)
    }
}
