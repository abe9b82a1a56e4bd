//! Removes devices: the guest ejects them, or the VMM takes them away.

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError};

use guest_topology::{Slot, SlotBus};

use crate::bus::SharedFunction;
use crate::lock::lock;

use super::members::{Member, Members};
use super::{DeviceSet, DeviceSetError};

/// Slots that the guest has emptied. It keeps the functions, so that a vCPU does not drop the last reference and close a
/// device.
#[derive(Default)]
pub(super) struct Parked {
    slots: BTreeSet<Slot>,
    functions: Vec<SharedFunction>,
}

/// A slot that the guest has emptied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ejected {
    /// The slot.
    pub slot: Slot,
    /// The devices that were in it, which the VMM closes.
    pub tags: Vec<String>,
}

impl DeviceSet {
    /// The slot that the guest is to empty for a device to leave: its own, or that of the whole switch if no other
    /// device is below it.
    pub fn slot_to_eject(&self, tag: &str) -> Option<Slot> {
        let members = lock(&self.members);
        let slot = members.get(tag)?.slot;
        let SlotBus::Switch(root) = slot.bus() else {
            return Some(slot);
        };
        let others = members.list.iter().filter(|one| one.request.tag != tag);
        let mut others = others.filter(|one| one.in_guest && one.slot.bus() == slot.bus());
        match others.next() {
            Some(_) => Some(slot),
            None => Slot::new(SlotBus::Root, root),
        }
    }

    /// The guest has emptied a slot: its functions leave the bus at once. Quick, for a vCPU thread. The VMM then takes
    /// the devices with [`take_ejected`](Self::take_ejected) and closes them.
    pub fn eject(&self, slot: Slot) {
        // The slot is recorded as emptied before the bus shows it as free. Otherwise a new device could be plugged
        // into it in between and be taken for the ejected one.
        lock(&self.ejected).slots.insert(slot);
        let functions = self.guest.bus.unplug(slot);
        lock(&self.ejected).functions.extend(functions);
    }

    /// The slots that the guest has emptied since the last call.
    pub fn take_ejected(&self) -> Vec<Ejected> {
        let mut members = lock(&self.members);
        let Parked { slots, functions } = std::mem::take(&mut *lock(&self.ejected));
        drop(functions);
        let take = |slot: Slot| Ejected {
            slot,
            tags: members.leave(slot),
        };
        slots.into_iter().map(take).collect()
    }

    /// The device numbers on `bus` that the guest has emptied since the last [`take_ejected`](Self::take_ejected).
    pub(super) fn emptied(&self, bus: SlotBus) -> BTreeSet<u8> {
        let ejected = lock(&self.ejected);
        let here = ejected.slots.iter().filter(|slot| slot.bus() == bus);
        here.map(|slot| slot.device()).collect()
    }

    /// Takes the functions in a slot off the bus without the guest's consent, and returns the devices among them, which
    /// the VMM closes. Their BARs are unmapped for their peers first.
    pub fn unplug(&self, slot: Slot) -> Vec<String> {
        let mut members = lock(&self.members);
        let here = |one: &&Member| one.in_guest && slot.holds(one.slot);
        for device in members
            .list
            .iter()
            .filter(here)
            .filter_map(|one| one.device.as_ref())
        {
            if let Err(error) = lock(device).detach() {
                log::error!("{error}");
            }
        }
        drop(self.guest.bus.unplug(slot));
        members.leave(slot)
    }

    /// The slots of switches that the guest has no members below.
    pub fn empty_switches(&self) -> BTreeSet<Slot> {
        let members = lock(&self.members);
        let switch = |member: &Member| match member.slot.bus() {
            SlotBus::Switch(root) => Some(root),
            SlotBus::Root => None,
        };
        let used: BTreeSet<u8> = members
            .list
            .iter()
            .filter(|member| member.in_guest)
            .filter_map(switch)
            .collect();
        let roots = members.list.iter().filter_map(switch);
        roots
            .filter(|root| !used.contains(root))
            .filter_map(|root| Slot::new(SlotBus::Root, root))
            .collect()
    }

    /// Closes a device that is no longer in the guest, and its IOMMU context if it was the last device there. Returns
    /// whether it is closed; `false` while a vCPU is still accessing it: the VMM calls again soon.
    ///
    /// # Errors
    /// [`DeviceSetError::Unknown`].
    pub fn close(&self, tag: &str) -> Result<bool, DeviceSetError> {
        let mut members = lock(&self.members);
        let member = members.list.iter_mut();
        let member = member.into_iter().find(|one| one.request.tag == tag);
        let member = member.ok_or_else(|| DeviceSetError::Unknown(tag.to_owned()))?;
        if let Some(device) = member.device.take() {
            match Arc::try_unwrap(device) {
                Ok(device) => {
                    let mut device = device.into_inner().unwrap_or_else(PoisonError::into_inner);
                    self.watch.remove_device(&device);
                    if let Err(error) = device.detach() {
                        log::error!("{error}");
                    }
                    // The kernel closes it here.
                    drop(device);
                }
                Err(device) => {
                    member.device = Some(device);
                    return Ok(false);
                }
            }
        }
        members.list.retain(|one| one.request.tag != tag);
        members.drop_unused_contexts();
        Ok(true)
    }
}

impl Members {
    /// Marks the devices in a slot as gone from the guest, and returns them.
    fn leave(&mut self, slot: Slot) -> Vec<String> {
        let here = |one: &&mut Member| one.in_guest && slot.holds(one.slot);
        let leaving = self.list.iter_mut().filter(here).map(|member| {
            member.in_guest = false;
            member.request.tag.clone()
        });
        leaving.collect()
    }

    fn drop_unused_contexts(&mut self) {
        let list = &self.list;
        let domains = &mut self.contexts.domains;
        domains.retain(|name, _| list.iter().any(|member| member.info.domain == *name));
    }
}
