//! Registers of the guest's slots, compared with a model of the slots' contents.

use std::collections::BTreeSet;

use guest_topology::{Slot, SlotBus};
use hotplug::{Register, SlotRegisters};

use crate::bytes::Bytes;

/// Makes accesses of the VMM and the guest. Checks that the registers agree with the model about occupied slots, that a
/// guest empties only occupied slots and each once, and that a notification is read once.
pub(crate) fn slots(input: &[u8]) {
    let mut bytes = Bytes::new(input);
    let mut registers = SlotRegisters::default();
    let mut occupied = BTreeSet::new();
    while !bytes.is_empty() {
        let op = bytes.next();
        match op & 0xf {
            0..=2 => {
                let slot = slot(&mut bytes);
                registers.occupy(slot);
                occupied.insert(slot);
            }
            3 => registers.announce(slot(&mut bytes)),
            4 => registers.request_unplug(slot(&mut bytes)),
            5 => drop(registers.cancel_unplug(slot(&mut bytes))),
            6 => registers.rescan(slot(&mut bytes).bus()),
            7 => registers.press_button(),
            8 => {
                let slot = slot(&mut bytes);
                assert_eq!(registers.vacate(slot), occupied.contains(&slot), "{slot}");
                if occupied.contains(&slot) {
                    empty(&mut occupied, slot);
                }
            }
            9..=11 => {
                let offset = u16::from(bytes.next()) % 32;
                let first = registers.read(offset);
                let again = registers.read(offset);
                let keeps = offset == u16::from(Register::Select.offset());
                assert_eq!(again, if keeps { first } else { 0 }, "{offset}");
            }
            12 => {
                let select = Register::Select.offset().into();
                let bus = u32::from(bytes.next() % 4);
                assert!(registers.write(select, bus).is_empty());
            }
            _ => {
                let offset = match op >> 4 {
                    0..12 => Register::Eject.offset().into(),
                    _ => u16::from_le_bytes(bytes.array()),
                };
                let emptied = registers.write(offset, u32::from_le_bytes(bytes.array()));
                for slot in emptied {
                    assert!(occupied.contains(&slot), "{slot} was not occupied");
                    empty(&mut occupied, slot);
                }
            }
        }
        for bus in [SlotBus::Root, SlotBus::Switch(1), SlotBus::Switch(2)] {
            for slot in (0..32).filter_map(|device| Slot::new(bus, device)) {
                let expected = occupied.contains(&slot);
                assert_eq!(registers.is_occupied(slot), expected, "{slot}");
            }
        }
    }
}

/// Empties a slot. If it holds a switch, the slots on the switch go too.
fn empty(occupied: &mut BTreeSet<Slot>, slot: Slot) {
    occupied.retain(|other| !slot.holds(*other));
}

fn slot(bytes: &mut Bytes<'_>) -> Slot {
    let bus = match bytes.below(3) {
        0 => SlotBus::Root,
        1 => SlotBus::Switch(1),
        _ => SlotBus::Switch(2),
    };
    Slot::new(bus, bytes.next() % 32).expect("a slot")
}
