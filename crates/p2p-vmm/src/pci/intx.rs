//! Interrupt routing: from a function's pin through the bridges above it to a pin of the I/O APIC.
//!
//! The guest applies the same rules: it swizzles pins at bridges and looks up the result on the root bus in the host
//! bridge's _PRT (linux 7.2 drivers/acpi/pci_irq.c: acpi_pci_irq_lookup()).

use guest_topology::{Slot, SlotBus};

use crate::irq::Gsi;

/// Interrupt pins of a PCI device, INTA to INTD.
pub(crate) const PINS: u8 = 4;
/// Device numbers of a bus.
pub(crate) const DEVICES: u8 = 32;
/// The pins of the I/O APIC for PCI: the last eight of 24, which no other device uses.
const FIRST_GSI: u8 = 16;
const GSIS: u8 = 8;

/// The GSI of a pin (0 is INTA) of a device on the root bus. All devices share eight GSIs; adjacent devices have
/// different ones.
pub(crate) fn gsi(device: u8, pin: u8) -> Gsi {
    Gsi::ioapic_pin(FIRST_GSI + (device % GSIS + pin % GSIS) % GSIS)
}

/// The GSI of INTA of an endpoint below the port in `slot`. Every bridge swizzles the pins of a device by its device
/// number (PCI-to-PCI bridge r1.2 §9.1), which is 0 for the upstream port and for an endpoint below a port.
pub(crate) fn gsi_of_slot(slot: Slot) -> Gsi {
    match slot.bus() {
        SlotBus::Root => gsi(slot.device(), 0),
        SlotBus::Switch(root) => gsi(root, slot.device() % PINS),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_are_swizzled_at_every_bridge() {
        let number = |bus, device| gsi_of_slot(Slot::new(bus, device).unwrap()).number();
        let switch = SlotBus::Switch(3);
        assert_eq!(number(switch, 0), 16 + 3);
        assert_eq!(number(switch, 1), 16 + 4);
        assert_eq!(number(switch, 5), 16 + 4, "pin 5 is pin 1");
        assert_eq!(number(SlotBus::Root, 7), 16 + 7);
        assert_eq!(number(SlotBus::Root, 9), 16 + 1);
    }

    #[test]
    fn every_pin_of_every_device_is_one_of_the_last_eight() {
        for device in 0..DEVICES {
            for pin in 0..PINS {
                assert!((16..24).contains(&gsi(device, pin).number()));
            }
        }
    }
}
