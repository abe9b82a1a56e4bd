//! Release of devices: closes ejected devices, and removes switches and contexts without devices.

use std::sync::{Arc, PoisonError};
use std::time::Instant;

use hotplug::lifecycle::{Event as Step, State};
use hotplug::{Slot, SlotBus};
use vmm_api::Event;
use vmm_sys_util::epoll::ControlOperation;

use super::registry::{Devices, GuestDevice};

impl Devices {
    /// Processes the slots that the guest has ejected.
    pub(super) fn process_ejected(&mut self) {
        for slot in self.guest.control.take_emptied() {
            let gone: Vec<String> = self
                .list
                .iter()
                .filter(|assigned| assigned.is_in_guest() && slot.holds(assigned.slot))
                .map(|assigned| assigned.id().to_owned())
                .collect();
            log::debug!("the guest has ejected {slot}: {gone:?}");
            for id in gone {
                self.advance(&id, Step::Ejected);
            }
            if slot.bus() == SlotBus::Root {
                self.empty_switches.remove(&slot.device());
            }
        }
        self.request_empty_switch_unplug();
    }

    /// The guest has ended: devices with a pending unplug request are removed. Returns the last events of the
    /// devices, after they are closed. Must be called when no vCPU runs any more.
    pub(crate) fn end(&mut self) -> Vec<Event> {
        self.take_events(Instant::now());
        self.process_ejected();
        let leaving =
            |entry: &GuestDevice| matches!(entry.state, State::UnplugRequested | State::Overdue);
        let entries = self.list.iter().enumerate();
        let entries = entries.filter(|(_, entry)| leaving(entry));
        let removals: Vec<_> = entries
            .map(|(at, entry)| (entry.id().to_owned(), self.removal_slot(at)))
            .collect();
        for (id, slot) in removals {
            if let Some(slot) = slot {
                self.guest.control.remove(slot);
            }
            self.advance(&id, Step::Ejected);
        }
        self.close_released();
        std::mem::take(&mut self.pending_events)
    }

    /// Requests that the guest ejects switches without members.
    fn request_empty_switch_unplug(&mut self) {
        let switches: Vec<u8> = self
            .list
            .iter()
            .filter_map(|assigned| match assigned.slot.bus() {
                SlotBus::Switch(root) => Some(root),
                SlotBus::Root => None,
            })
            .collect();
        for root in switches {
            let bus = SlotBus::Switch(root);
            let used = |a: &GuestDevice| a.is_in_guest() && a.slot.bus() == bus;
            let slot = Slot::new(SlotBus::Root, root);
            let slot = slot.filter(|slot| self.guest.control.is_occupied(*slot));
            if let Some(slot) = slot
                && !self.list.iter().any(used)
                && self.empty_switches.insert(root)
            {
                self.guest.control.request_unplug(slot);
            }
        }
    }

    /// Whether there are switches without members that the guest has not ejected yet.
    pub(crate) fn has_empty_switches(&self) -> bool {
        !self.empty_switches.is_empty()
    }

    /// Removes switches without members that the guest was requested to eject. No driver uses them.
    pub(super) fn remove_empty_switches(&mut self) {
        for root in std::mem::take(&mut self.empty_switches) {
            let slot = Slot::new(SlotBus::Root, root);
            if slot.is_some_and(|slot| self.guest.control.remove(slot)) {
                self.guest.control.rescan(SlotBus::Root);
            }
        }
    }

    /// Closes the devices that the guest no longer has, and the contexts without devices. A device that a vCPU is
    /// still accessing is closed by a later call.
    pub(super) fn close_released(&mut self) {
        self.request_empty_switch_unplug();
        self.close_pending = false;
        let mut list = std::mem::take(&mut self.list);
        let mut closed = Vec::new();
        for entry in &mut list {
            if matches!(entry.state, State::Releasing(_)) {
                if self.close(entry) {
                    closed.push(entry.id().to_owned());
                } else {
                    self.close_pending = true;
                }
            }
        }
        self.list = list;
        // Before the event: when it is published this process holds nothing of the device.
        self.drop_unused_contexts();
        for id in closed {
            self.advance(&id, Step::Closed);
        }
        self.list.retain(|entry| entry.state != State::Released);
    }

    /// Closes a device if only the main thread holds it. Returns whether it was closed.
    fn close(&self, assigned: &mut GuestDevice) -> bool {
        if let Err(error) = self.watch_device(assigned, || ControlOperation::Delete) {
            log::debug!("{}: {error}", assigned.info.sbdf);
        }
        let Some(device) = assigned.device.take() else {
            return true;
        };
        match Arc::try_unwrap(device) {
            Ok(device) => {
                let mut device = device.into_inner().unwrap_or_else(PoisonError::into_inner);
                if let Err(error) = device.detach() {
                    log::error!("{error}");
                }
                // The kernel closes it here.
                drop(device);
                true
            }
            Err(device) => {
                assigned.device = Some(device);
                false
            }
        }
    }

    fn drop_unused_contexts(&mut self) {
        let list = &self.list;
        let domains = &mut self.contexts.domains;
        domains.retain(|name, _| {
            let mut members = list.iter().filter(|a| a.info.domain == *name);
            members.any(|member| member.device.is_some())
        });
    }
}
