//! The members of a set, and the contexts that they are in.

use std::collections::BTreeMap;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use guest_topology::{Slot, SlotBus};
use iommu_group::assignment::{DeviceInfo, DomainName, has_unshared};
use iommu_group::{AddressRange, Gpa, Sbdf};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use crate::device::{AssignedDevice, BarMappingError, DeviceEvent};
use crate::host_iommu::Choice;
use crate::lock::lock;
use crate::memory::HostMemory;

use super::contexts::{Contexts, within};
use super::plug::SlotContents;
use super::{DeviceRequest, DeviceSet, DeviceSetError};

/// A device of the VM, from the addition until it is closed.
pub(super) struct Member {
    pub(super) request: DeviceRequest,
    pub(super) info: DeviceInfo,
    /// The slot of the port directly above it.
    pub(super) slot: Slot,
    /// The slot that was plugged with it: its own, or that of the switch.
    pub(super) announced_slot: Slot,
    /// Its first address in the guest.
    pub(super) guest: Sbdf,
    /// Whether it is in its slot.
    pub(super) in_guest: bool,
    /// `None` once it is closed.
    pub(super) device: Option<Arc<Mutex<AssignedDevice>>>,
}

/// The members, their contexts, and the memory that is mapped in each context.
pub(super) struct Members {
    pub(super) list: Vec<Member>,
    pub(super) contexts: Contexts,
    pub(super) memory: Vec<(Gpa, HostMemory)>,
}

/// A device of the VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberView {
    /// The VMM's name of it.
    pub tag: String,
    /// Its address on the host.
    pub host: Sbdf,
    /// Its first address in the guest.
    pub guest: Sbdf,
    /// The slot of the port directly above it.
    pub slot: Slot,
    /// The slot that was plugged with it: its own, or that of the switch above it.
    pub announced_slot: Slot,
    /// Its P2P domain.
    pub domain: Option<DomainName>,
    /// Whether it is in its slot. It stays a member without a slot until it is closed.
    pub in_guest: bool,
}

/// An event of a device that the VMM did not cause.
#[derive(Debug)]
pub struct SetEvent {
    /// The device's address on the host.
    pub host: Sbdf,
    /// The VMM's name of the device; `None` if it is closed.
    pub tag: Option<String>,
    /// What happened.
    pub kind: SetEventKind,
}

/// Kinds of events of a device.
#[derive(Debug)]
pub enum SetEventKind {
    /// The device emitted an event.
    Device(DeviceEvent),
    /// This many more events were suppressed, because the guest can cause them without limit.
    Suppressed(u64),
}

/// Waits for the events of all devices.
pub(super) struct Watch(Epoll);

impl Watch {
    pub(super) fn new() -> Result<Self, DeviceSetError> {
        Epoll::new().map(Self).map_err(DeviceSetError::Events)
    }

    pub(super) fn add(&self, fd: &impl AsRawFd) -> std::io::Result<()> {
        let event = EpollEvent::new(EventSet::IN, 0);
        self.0.ctl(ControlOperation::Add, fd.as_raw_fd(), event)
    }

    /// Adds the events by which VFIO reports errors and requests the device back.
    pub(super) fn add_device(&self, device: &AssignedDevice) {
        if let Err(error) = device.host_events().try_for_each(|event| self.add(event)) {
            log::error!(
                "{}: cannot wait for events of the host: {error}",
                device.sbdf()
            );
        }
    }

    pub(super) fn remove_device(&self, device: &AssignedDevice) {
        for event in device.host_events() {
            let none = EpollEvent::new(EventSet::empty(), 0);
            let removed = self
                .0
                .ctl(ControlOperation::Delete, event.as_raw_fd(), none);
            if let Err(error) = removed {
                log::debug!("{}: {error}", device.sbdf());
            }
        }
    }
}

impl Member {
    pub(super) fn new(request: DeviceRequest, info: DeviceInfo, plugged: SlotContents) -> Self {
        Self {
            request,
            info,
            slot: plugged.slot,
            announced_slot: plugged.announced_slot,
            guest: plugged.guest,
            in_guest: true,
            device: Some(plugged.device),
        }
    }

    pub(super) fn view(&self) -> MemberView {
        MemberView {
            tag: self.request.tag.clone(),
            host: self.info.sbdf,
            guest: self.guest,
            slot: self.slot,
            announced_slot: self.announced_slot,
            domain: self.info.domain.clone(),
            in_guest: self.in_guest,
        }
    }
}

impl Members {
    pub(super) fn get(&self, tag: &str) -> Option<&Member> {
        self.list.iter().find(|member| member.request.tag == tag)
    }

    /// The other members of a device's domain.
    pub(super) fn peers_of(&self, info: &DeviceInfo) -> impl Iterator<Item = &Member> {
        let members = self.list.iter();
        members.filter(|peer| info.domain.is_some() && peer.info.domain == info.domain)
    }

    /// The switch of a domain, by its slot on the root bus, if members can be added to it.
    pub(super) fn switch_of(&self, domain: Option<&DomainName>) -> Option<u8> {
        let domain = domain?;
        let mut peers = self.list.iter().filter(|peer| peer.in_guest);
        peers.find_map(|peer| match peer.slot.bus() {
            SlotBus::Switch(root) if peer.info.domain.as_ref() == Some(domain) => Some(root),
            SlotBus::Switch(_) | SlotBus::Root => None,
        })
    }

    pub(super) fn memory_ranges(&self) -> impl Iterator<Item = AddressRange<Gpa>> {
        let range = |(gpa, memory): &(Gpa, HostMemory)| {
            AddressRange::new(*gpa, u64::try_from(memory.len_bytes()).ok()?)
        };
        self.memory.iter().filter_map(range)
    }

    pub(super) fn map_region(
        &mut self,
        gpa: Gpa,
        memory: HostMemory,
    ) -> Result<(), DeviceSetError> {
        let range = AddressRange::new(gpa, u64::try_from(memory.len_bytes()).unwrap_or(u64::MAX));
        for (name, domain) in &self.contexts.domains {
            let ranges = domain.context.iova_ranges()?;
            for member in self.list.iter().filter(|one| one.info.domain == *name) {
                member.info.reaches_memory(range)?;
                if let Some(memory) = range.filter(|range| !within(range, &ranges)) {
                    let sbdf = member.info.sbdf;
                    return Err(DeviceSetError::Untranslated { sbdf, memory });
                }
            }
        }
        let region = [(gpa, memory)];
        let mut done = Vec::new();
        for domain in self.contexts.domains.values() {
            if let Err(error) = domain.context.map_guest(&region) {
                for domain in done {
                    let domain: &super::contexts::Domain = domain;
                    if let Err(undo) = domain.context.unmap_guest(&region) {
                        log::error!("while undoing: {undo}");
                    }
                }
                return Err(error.into());
            }
            done.push(domain);
        }
        self.memory.extend(region);
        Ok(())
    }

    pub(super) fn unmap_region(&mut self, gpa: Gpa) -> Result<(), DeviceSetError> {
        let Some(at) = self.memory.iter().position(|(start, _)| *start == gpa) else {
            return Ok(());
        };
        let region = self.memory.get(at).cloned();
        for domain in self.contexts.domains.values() {
            domain.context.unmap_guest(region.as_slice())?;
        }
        self.memory.remove(at);
        Ok(())
    }
}

impl DeviceSet {
    /// The members, in the order of their addition.
    pub fn members(&self) -> Vec<MemberView> {
        lock(&self.members).list.iter().map(Member::view).collect()
    }

    /// A member; `None` once it is closed.
    pub fn member(&self, tag: &str) -> Option<MemberView> {
        lock(&self.members).get(tag).map(Member::view)
    }

    /// Calls `ask` with an open device of the set, which is locked: `ask` must not call the set.
    pub fn with_device<T>(
        &self,
        tag: &str,
        ask: impl FnOnce(&mut AssignedDevice) -> T,
    ) -> Option<T> {
        let device = lock(&self.members).get(tag)?.device.clone()?;
        let mut device = lock(&device);
        Some(ask(&mut device))
    }

    /// The kernel interface of the devices, and why it was chosen; `None` before the first device.
    pub fn interface<T>(&self, ask: impl FnOnce(&Choice) -> T) -> Option<T> {
        lock(&self.members).contexts.choice().map(ask)
    }

    /// Whether any two of the open devices are not peers.
    pub fn has_unshared(&self) -> bool {
        let members = lock(&self.members);
        let open = members.list.iter().filter(|one| one.device.is_some());
        has_unshared(open.map(|member| member.info.domain.clone()))
    }

    /// Unmaps the BARs of a device for its peers until this is called with `false`. Requests of peers fault in the IOMMU
    /// meanwhile; the guest's own accesses are not affected.
    ///
    /// # Errors
    /// [`DeviceSetError::Unknown`]; [`DeviceSetError::BarMapping`] if a BAR could not be mapped or unmapped.
    pub fn set_revoked(&self, tag: &str, revoked: bool) -> Result<(), DeviceSetError> {
        if self.member(tag).is_none() {
            return Err(DeviceSetError::Unknown(tag.to_owned()));
        }
        let set: Option<Result<(), BarMappingError>> =
            self.with_device(tag, |device| device.set_revoked(revoked));
        Ok(set.unwrap_or(Ok(()))?)
    }

    /// Readable when [`process_events`](Self::process_events) has something to do.
    pub fn event_fd(&self) -> &impl AsRawFd {
        &self.watch.0
    }

    /// When [`process_events`](Self::process_events) must be called to report suppressed events.
    pub fn deadline(&self) -> Option<Instant> {
        self.guest.events.deadline()
    }

    /// Acts on the errors and requests that VFIO has reported, and takes the events of all devices.
    pub fn process_events(&self) -> Vec<SetEvent> {
        let members = lock(&self.members);
        for device in members.list.iter().filter_map(|one| one.device.as_ref()) {
            lock(device).process_events();
        }
        let tags: BTreeMap<Sbdf, &str> = members
            .list
            .iter()
            .map(|member| (member.info.sbdf, member.request.tag.as_str()))
            .collect();
        let taken = self.guest.events.take(Instant::now());
        let devices = taken.events.into_iter();
        let devices = devices.map(|(host, event)| (host, SetEventKind::Device(event)));
        let suppressed = taken.suppressed.into_iter();
        let suppressed = suppressed.map(|(host, count)| (host, SetEventKind::Suppressed(count)));
        devices
            .chain(suppressed)
            .map(|(host, kind)| SetEvent {
                host,
                tag: tags.get(&host).map(|tag| (*tag).to_owned()),
                kind,
            })
            .collect()
    }
}
