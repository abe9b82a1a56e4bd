//! The register file: no locks, no notifications, bounded memory whatever the guest writes.

use std::collections::{BTreeMap, BTreeSet};

use guest_topology::{Slot, SlotBus};

/// A register, by its offset in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// Read: slots of the selected bus with a new device, one bit per device number. Reading clears it.
    Inserted = 0,
    /// Read: slots of the selected bus that the guest is asked to empty. Reading clears it.
    Leaving = 4,
    /// Write: the guest has released these slots of the selected bus.
    Eject = 8,
    /// Read and write: the selected bus. 0 is the root bus; other numbers are the slot of a switch on the root bus. An
    /// invalid bus has no slots.
    Select = 12,
    /// Read: pending events. Bit 0: power button; bit 1: slots. Reading clears it.
    Events = 16,
    /// Read: bit 0, the selected bus must be checked as a whole, because a device was removed without a request.
    /// Reading clears it.
    Rescan = 20,
}

impl Register {
    /// Size of all registers in bytes.
    pub const LEN_BYTES: u8 = 24;
    /// Bit of [`Register::Events`]: the power button was pressed.
    pub const BUTTON: u32 = 1;
    /// Bit of [`Register::Events`]: slots have changed.
    pub const SLOTS: u32 = 2;

    /// The offset.
    pub fn offset(self) -> u8 {
        self as u8
    }

    fn at(offset: u16) -> Option<Self> {
        let all = [
            Self::Inserted,
            Self::Leaving,
            Self::Eject,
            Self::Select,
            Self::Events,
            Self::Rescan,
        ];
        let mut all = all.into_iter();
        all.find(|register| u16::from(register.offset()) == offset)
    }
}

/// The slots of one bus, one bit per device number.
#[derive(Clone, Copy, Debug, Default)]
struct BusSlots {
    occupied: u32,
    inserted: u32,
    leaving: u32,
    /// The removal was requested, and the guest has read the request.
    asked: u32,
    /// A device was removed after the guest read its removal request, so a late eject may follow.
    owed: u32,
    rescan: bool,
}

/// The state of the registers and slots.
#[derive(Debug, Default)]
pub struct SlotRegisters {
    buses: BTreeMap<SlotBus, BusSlots>,
    selected: u32,
    events: u32,
}

impl SlotRegisters {
    /// Marks `slot` as occupied. The guest finds the device at boot or when it is notified.
    pub fn occupy(&mut self, slot: Slot) {
        self.bus(slot).occupied |= bit(slot);
    }

    /// Notifies the guest of a new device in `slot`.
    pub fn announce(&mut self, slot: Slot) {
        self.bus(slot).inserted |= bit(slot);
        self.events |= Register::SLOTS;
    }

    /// Asks the guest to release the device in `slot`.
    pub fn request_unplug(&mut self, slot: Slot) {
        self.bus(slot).leaving |= bit(slot);
        self.events |= Register::SLOTS;
    }

    /// Cancels a removal request. Returns whether the guest had not read it yet.
    pub fn cancel_unplug(&mut self, slot: Slot) -> bool {
        let bus = self.bus(slot);
        let unseen = bus.leaving & bit(slot) != 0;
        bus.leaving &= !bit(slot);
        unseen
    }

    /// Notifies the guest to check a whole bus.
    pub fn rescan(&mut self, bus: SlotBus) {
        self.buses.entry(bus).or_default().rescan = true;
        self.events |= Register::SLOTS;
    }

    /// Presses the power button.
    pub fn press_button(&mut self) {
        self.events |= Register::BUTTON;
    }

    /// Whether something is in `slot`.
    pub fn is_occupied(&self, slot: Slot) -> bool {
        let bus = self.buses.get(&slot.bus());
        bus.is_some_and(|bus| bus.occupied & bit(slot) != 0)
    }

    /// Empties `slot`, and all slots of a switch in it. Returns whether it was occupied. If true, the caller must
    /// remove the device from the bus.
    pub fn vacate(&mut self, slot: Slot) -> bool {
        if !self.is_occupied(slot) {
            return false;
        }
        let bus = self.bus(slot);
        bus.owed |= bus.asked & bit(slot);
        for bits in [
            &mut bus.occupied,
            &mut bus.inserted,
            &mut bus.leaving,
            &mut bus.asked,
        ] {
            *bits &= !bit(slot);
        }
        if slot.bus() == SlotBus::Root {
            self.buses.remove(&SlotBus::Switch(slot.device()));
        }
        true
    }

    /// Reads the register at an offset; 0 if there is none.
    pub fn read(&mut self, offset: u16) -> u32 {
        let Some(register) = Register::at(offset) else {
            return 0;
        };
        let selected = self.selected();
        let bus = selected.and_then(|bus| self.buses.get_mut(&bus));
        match (register, bus) {
            (Register::Events, _) => std::mem::take(&mut self.events),
            (Register::Select, _) => self.selected,
            (Register::Inserted, Some(bus)) => std::mem::take(&mut bus.inserted),
            (Register::Leaving, Some(bus)) => {
                bus.asked |= bus.leaving;
                std::mem::take(&mut bus.leaving)
            }
            (Register::Rescan, Some(bus)) => std::mem::take(&mut bus.rescan).into(),
            (Register::Inserted | Register::Leaving | Register::Rescan, None)
            | (Register::Eject, _) => 0,
        }
    }

    /// Writes the register at an offset. Returns the slots that this has emptied.
    pub fn write(&mut self, offset: u16, value: u32) -> BTreeSet<Slot> {
        match Register::at(offset) {
            Some(Register::Select) => self.selected = value,
            Some(Register::Eject) => return self.eject(value),
            Some(Register::Inserted | Register::Leaving | Register::Events | Register::Rescan)
            | None => {}
        }
        BTreeSet::new()
    }

    fn eject(&mut self, bits: u32) -> BTreeSet<Slot> {
        let Some(bus) = self.selected() else {
            return BTreeSet::new();
        };
        let slots = (0..32).filter_map(|device| Slot::new(bus, device));
        slots
            .filter(|slot| bits & bit(*slot) != 0)
            .filter(|slot| self.ejected(*slot))
            .collect()
    }

    /// Handles an eject by the guest. Returns whether the slot was occupied. A late eject of a removed device is
    /// ignored once, unless the removal of the present device was requested since.
    fn ejected(&mut self, slot: Slot) -> bool {
        let Some(bus) = self.buses.get_mut(&slot.bus()) else {
            return false;
        };
        let (asked, owed) = (bus.asked & bit(slot) != 0, bus.owed & bit(slot) != 0);
        bus.asked &= !bit(slot);
        bus.owed &= !bit(slot);
        (asked || !owed) && self.vacate(slot)
    }

    fn bus(&mut self, slot: Slot) -> &mut BusSlots {
        self.buses.entry(slot.bus()).or_default()
    }

    fn selected(&self) -> Option<SlotBus> {
        match u8::try_from(self.selected).ok()? {
            0 => Some(SlotBus::Root),
            root => Some(SlotBus::Switch(root)),
        }
    }
}

fn bit(slot: Slot) -> u32 {
    1 << slot.device()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(bus: SlotBus, device: u8) -> Slot {
        Slot::new(bus, device).unwrap()
    }

    fn read(registers: &mut SlotRegisters, register: Register) -> u32 {
        registers.read(register.offset().into())
    }

    fn write(registers: &mut SlotRegisters, register: Register, value: u32) -> Vec<Slot> {
        let emptied = registers.write(register.offset().into(), value);
        emptied.into_iter().collect()
    }

    #[test]
    fn a_notification_is_delivered_once_on_its_bus() {
        let mut registers = SlotRegisters::default();
        let (root, member) = (slot(SlotBus::Root, 9), slot(SlotBus::Switch(2), 31));
        for slot in [root, member] {
            registers.occupy(slot);
            registers.announce(slot);
        }
        assert_eq!(read(&mut registers, Register::Events), Register::SLOTS);
        assert_eq!(read(&mut registers, Register::Events), 0);
        assert_eq!(read(&mut registers, Register::Inserted), 1 << 9);
        assert_eq!(read(&mut registers, Register::Inserted), 0);
        write(&mut registers, Register::Select, 2);
        assert_eq!(read(&mut registers, Register::Inserted), 1 << 31);
        assert_eq!(read(&mut registers, Register::Leaving), 0);
    }

    #[test]
    fn a_repeated_request_is_delivered_again() {
        let mut registers = SlotRegisters::default();
        let slot = slot(SlotBus::Root, 9);
        registers.occupy(slot);
        for _ in 0..2 {
            registers.request_unplug(slot);
            assert_eq!(read(&mut registers, Register::Events), Register::SLOTS);
            assert_eq!(read(&mut registers, Register::Leaving), 1 << 9);
        }
        assert!(
            !registers.cancel_unplug(slot),
            "the guest has read the request"
        );
        registers.request_unplug(slot);
        assert!(registers.cancel_unplug(slot));
        assert_eq!(read(&mut registers, Register::Leaving), 0);
    }

    #[test]
    fn only_occupied_slots_are_ejected_and_only_once() {
        let mut registers = SlotRegisters::default();
        let slot = slot(SlotBus::Root, 9);
        registers.occupy(slot);
        assert_eq!(write(&mut registers, Register::Eject, 1 << 8), []);
        assert_eq!(write(&mut registers, Register::Eject, u32::MAX), [slot]);
        assert_eq!(write(&mut registers, Register::Eject, u32::MAX), []);
        assert!(!registers.vacate(slot));
    }

    #[test]
    fn a_late_eject_does_not_remove_a_new_device() {
        let mut registers = SlotRegisters::default();
        let slot = slot(SlotBus::Root, 9);
        // Requested, read, then removed; a new device follows.
        let replaced = |registers: &mut SlotRegisters| {
            registers.occupy(slot);
            registers.request_unplug(slot);
            read(registers, Register::Leaving);
            assert!(registers.vacate(slot));
            registers.occupy(slot);
        };
        replaced(&mut registers);
        assert_eq!(write(&mut registers, Register::Eject, 1 << 9), []);
        assert!(registers.is_occupied(slot));
        assert_eq!(write(&mut registers, Register::Eject, 1 << 9), [slot]);

        // An eject does not answer an unread request, but a request that was read.
        replaced(&mut registers);
        registers.request_unplug(slot);
        assert_eq!(write(&mut registers, Register::Eject, 1 << 9), []);
        read(&mut registers, Register::Leaving);
        assert_eq!(write(&mut registers, Register::Eject, 1 << 9), [slot]);

        // A device that left on request, or before the request was read, causes no late eject.
        registers.occupy(slot);
        registers.request_unplug(slot);
        assert!(registers.vacate(slot));
        registers.occupy(slot);
        assert_eq!(write(&mut registers, Register::Eject, 1 << 9), [slot]);
    }

    #[test]
    fn vacating_a_switch_vacates_its_slots() {
        let mut registers = SlotRegisters::default();
        let (root, member) = (slot(SlotBus::Root, 1), slot(SlotBus::Switch(1), 4));
        registers.occupy(root);
        registers.occupy(member);
        assert_eq!(write(&mut registers, Register::Eject, 1 << 1), [root]);
        assert!(!registers.is_occupied(member));
        write(&mut registers, Register::Select, 1);
        assert_eq!(write(&mut registers, Register::Eject, 1 << 4), []);
    }

    #[test]
    fn guest_writes_do_not_grow_memory() {
        let mut registers = SlotRegisters::default();
        registers.occupy(slot(SlotBus::Root, 9));
        for selected in (0..1000).chain([u32::MAX]) {
            write(&mut registers, Register::Select, selected);
            for offset in (0..64).filter(|offset| *offset != 12) {
                registers.read(offset);
                let emptied = registers.write(offset, !(1 << 9));
                assert!(emptied.is_empty());
            }
        }
        assert_eq!(registers.buses.len(), 1);
        assert!(registers.is_occupied(slot(SlotBus::Root, 9)));
    }

    #[test]
    fn button_and_rescan_are_delivered() {
        let mut registers = SlotRegisters::default();
        registers.press_button();
        assert_eq!(read(&mut registers, Register::Events), Register::BUTTON);
        registers.rescan(SlotBus::Root);
        assert_eq!(read(&mut registers, Register::Events), Register::SLOTS);
        assert_eq!(read(&mut registers, Register::Rescan), 1);
        assert_eq!(read(&mut registers, Register::Rescan), 0);
    }
}
