//! The register file itself: no locks, no notifications, bounded whatever the guest does.

use std::collections::{BTreeMap, BTreeSet};

use super::address::{Slot, SlotBus};

/// A register, by its offset in bytes from the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// Read: slots of the selected bus in which something has appeared, by device number. Empties it.
    Inserted = 0,
    /// Read: slots of the selected bus that the guest is asked to let go. Empties it.
    Leaving = 4,
    /// Write: the guest has let go of these slots of the selected bus.
    Eject = 8,
    /// Read and write: the selected bus. 0 is the root bus, other numbers are that of the switch in this slot of the
    /// root bus. What is no bus has no slots.
    Select = 12,
    /// Read: what to look at. Bit 0: the power button; bit 1: slots. Empties it.
    Events = 16,
    /// Read: bit 0, the selected bus is to be looked at as a whole: something has gone without being asked. Empties it.
    Rescan = 20,
}

impl Register {
    /// Bytes of all registers.
    pub const LEN_BYTES: u8 = 24;
    /// Bit of [`Register::Events`]: the power button was pressed.
    pub const BUTTON: u32 = 1;
    /// Bit of [`Register::Events`]: slots have changed.
    pub const SLOTS: u32 = 2;

    /// Its offset.
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

/// The slots of one bus, a bit for each device number.
#[derive(Clone, Copy, Debug, Default)]
struct BusSlots {
    occupied: u32,
    inserted: u32,
    leaving: u32,
    /// What is there was asked to leave, and the guest has seen it.
    asked: u32,
    /// Something was taken away that the guest had been asked to let go of: its word that it has may still come.
    owed: u32,
    rescan: bool,
}

/// What the guest finds in the registers, and what is in the slots.
#[derive(Debug, Default)]
pub struct SlotRegisters {
    buses: BTreeMap<SlotBus, BusSlots>,
    selected: u32,
    events: u32,
}

impl SlotRegisters {
    /// Something is in `slot` from now on. The guest finds it by itself, at boot or when it is told.
    pub fn occupy(&mut self, slot: Slot) {
        self.bus(slot).occupied |= bit(slot);
    }

    /// Tells the guest that something has appeared in `slot`.
    pub fn announce(&mut self, slot: Slot) {
        self.bus(slot).inserted |= bit(slot);
        self.events |= Register::SLOTS;
    }

    /// Asks the guest to let go of what is in `slot`.
    pub fn ask(&mut self, slot: Slot) {
        self.bus(slot).leaving |= bit(slot);
        self.events |= Register::SLOTS;
    }

    /// Takes a question back; whether the guest has not seen it yet.
    pub fn withdraw(&mut self, slot: Slot) -> bool {
        let bus = self.bus(slot);
        let unseen = bus.leaving & bit(slot) != 0;
        bus.leaving &= !bit(slot);
        unseen
    }

    /// Tells the guest to look at a whole bus.
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

    /// Empties `slot`, and with a switch all of its slots; whether something was there. Whoever is told so takes it
    /// from the bus: nobody else is.
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

    /// Reads the register at an offset; 0 where there is none.
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

    /// The guest says that it has let go of what is in `slot`; whether something was there. It may speak of what was
    /// there before, if that was taken away while it let go of it and it was not asked since: it says so once.
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
    fn asking_again_asks_again() {
        let mut registers = SlotRegisters::default();
        let slot = slot(SlotBus::Root, 9);
        registers.occupy(slot);
        for _ in 0..2 {
            registers.ask(slot);
            assert_eq!(read(&mut registers, Register::Events), Register::SLOTS);
            assert_eq!(read(&mut registers, Register::Leaving), 1 << 9);
        }
        assert!(!registers.withdraw(slot), "the guest has seen it");
        registers.ask(slot);
        assert!(registers.withdraw(slot));
        assert_eq!(read(&mut registers, Register::Leaving), 0);
    }

    #[test]
    fn only_what_is_there_is_ejected_and_only_once() {
        let mut registers = SlotRegisters::default();
        let slot = slot(SlotBus::Root, 9);
        registers.occupy(slot);
        assert_eq!(write(&mut registers, Register::Eject, 1 << 8), []);
        assert_eq!(write(&mut registers, Register::Eject, u32::MAX), [slot]);
        assert_eq!(write(&mut registers, Register::Eject, u32::MAX), []);
        assert!(!registers.vacate(slot));
    }

    #[test]
    fn a_belated_word_does_not_eject_who_came_after() {
        let mut registers = SlotRegisters::default();
        let slot = slot(SlotBus::Root, 9);
        // Asked, seen, and then taken away; somebody else comes.
        let replaced = |registers: &mut SlotRegisters| {
            registers.occupy(slot);
            registers.ask(slot);
            read(registers, Register::Leaving);
            assert!(registers.vacate(slot));
            registers.occupy(slot);
        };
        replaced(&mut registers);
        assert_eq!(write(&mut registers, Register::Eject, 1 << 9), []);
        assert!(registers.is_occupied(slot));
        assert_eq!(write(&mut registers, Register::Eject, 1 << 9), [slot]);

        // A question that the guest has not seen is not what it answers; one that it has seen is.
        replaced(&mut registers);
        registers.ask(slot);
        assert_eq!(write(&mut registers, Register::Eject, 1 << 9), []);
        read(&mut registers, Register::Leaving);
        assert_eq!(write(&mut registers, Register::Eject, 1 << 9), [slot]);

        // Who came and went as asked, or went before the guest was asked, leaves nothing owed.
        registers.occupy(slot);
        registers.ask(slot);
        assert!(registers.vacate(slot));
        registers.occupy(slot);
        assert_eq!(write(&mut registers, Register::Eject, 1 << 9), [slot]);
    }

    #[test]
    fn a_switch_takes_its_slots_with_it() {
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
    fn nothing_that_is_written_grows_anything() {
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
    fn button_and_rescan_are_events_too() {
        let mut registers = SlotRegisters::default();
        registers.press_button();
        assert_eq!(read(&mut registers, Register::Events), Register::BUTTON);
        registers.rescan(SlotBus::Root);
        assert_eq!(read(&mut registers, Register::Events), Register::SLOTS);
        assert_eq!(read(&mut registers, Register::Rescan), 1);
        assert_eq!(read(&mut registers, Register::Rescan), 0);
    }
}
