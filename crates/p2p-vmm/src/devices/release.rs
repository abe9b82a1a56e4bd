//! Release of devices: closes ejected devices, and removes switches without devices.

use std::time::Instant;

use guest_topology::SlotBus;
use hotplug::lifecycle::{Event as Step, State};
use p2p_vfio::Ejected;
use vmm_api::Event;

use super::registry::{Devices, GuestDevice};

impl Devices {
    /// Processes the slots that the guest has ejected.
    pub(super) fn process_ejected(&mut self) {
        self.control.clear_wake();
        for Ejected { slot, tags } in self.set.take_ejected() {
            log::debug!("the guest has ejected {slot}: {tags:?}");
            for id in tags {
                self.advance(&id, Step::Ejected);
            }
            if slot.bus() == SlotBus::Root {
                self.empty_switches.remove(&slot);
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
            |entry: &&GuestDevice| matches!(entry.state, State::UnplugRequested | State::Overdue);
        let entries = self.list.iter().filter(leaving);
        let ids: Vec<String> = entries.map(|entry| entry.id().to_owned()).collect();
        let slots: Vec<_> = ids.iter().map(|id| self.set.slot_to_eject(id)).collect();
        for (id, slot) in ids.iter().zip(slots) {
            if let Some(slot) = slot {
                self.control.remove(slot);
            }
            self.advance(id, Step::Ejected);
        }
        self.close_released();
        std::mem::take(&mut self.pending_events)
    }

    /// Requests that the guest ejects switches without members.
    fn request_empty_switch_unplug(&mut self) {
        for slot in self.set.empty_switches() {
            if self.control.is_occupied(slot) && self.empty_switches.insert(slot) {
                self.control.request_unplug(slot);
            }
        }
    }

    /// Whether there are switches without members that the guest has not ejected yet.
    pub(crate) fn has_empty_switches(&self) -> bool {
        !self.empty_switches.is_empty()
    }

    /// Removes switches without members that the guest was requested to eject. No driver uses them.
    pub(super) fn remove_empty_switches(&mut self) {
        for slot in std::mem::take(&mut self.empty_switches) {
            if self.control.remove(slot) {
                self.control.rescan(SlotBus::Root);
            }
        }
    }

    /// Closes the devices that the guest no longer has. A device that a vCPU is still accessing is closed by a later
    /// call.
    pub(super) fn close_released(&mut self) {
        self.request_empty_switch_unplug();
        self.close_pending = false;
        let released = |entry: &&GuestDevice| matches!(entry.state, State::Releasing(_));
        let released = self.list.iter().filter(released);
        let released: Vec<String> = released.map(|entry| entry.id().to_owned()).collect();
        for id in released {
            match self.set.close(&id) {
                Ok(true) => self.advance(&id, Step::Closed),
                Ok(false) => self.close_pending = true,
                Err(error) => log::error!("{error}"),
            }
        }
        self.list.retain(|entry| entry.state != State::Released);
    }
}
