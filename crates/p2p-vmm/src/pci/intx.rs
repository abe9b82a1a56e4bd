//! Where interrupt pins lead: from a function through the bridges above it to a pin of the I/O APIC.
//!
//! The guest follows the same rules in reverse: it swizzles pins at bridges by itself and finds those of the root bus
//! in the host bridge's _PRT (linux 7.2 drivers/acpi/pci_irq.c: acpi_pci_irq_lookup()).

use iommu_group::Sbdf;
use p2p_vfio::BusNumbers;

use crate::irq::Gsi;

/// Pins of a PCI device, INTA to INTD.
pub(crate) const PINS: u8 = 4;
/// Device numbers of a bus.
pub(crate) const DEVICES: u8 = 32;
/// The pins of the I/O APIC that are PCI's: the last eight of 24, which nothing else uses.
const FIRST_GSI: u8 = 16;
const GSIS: u8 = 8;

/// The GSI of a pin (0 is INTA) of a device on the root bus. Eight are shared by all, neighbours apart.
pub(crate) fn gsi(device: u8, pin: u8) -> Gsi {
    Gsi::ioapic_pin(FIRST_GSI + (device % GSIS + pin % GSIS) % GSIS)
}

/// The GSI of INTA of an endpoint below `ports`. At every bridge a device's pins are turned by its number on its bus
/// (PCI-to-PCI bridge r1.2 §9.1).
pub(crate) fn gsi_of(endpoint: Sbdf, ports: &[(Sbdf, BusNumbers)]) -> Gsi {
    let (mut at, mut pin) = (endpoint, 0);
    // A chain is never longer than there are bridges.
    for _ in ports {
        let above = ports.iter().find(|(_, buses)| buses.secondary == at.bus());
        let Some((port, _)) = above else { break };
        pin = (pin + at.device()) % PINS;
        at = *port;
    }
    gsi(at.device(), pin)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sbdf(text: &str) -> Sbdf {
        text.parse().unwrap()
    }

    fn port(text: &str, secondary: u8) -> (Sbdf, BusNumbers) {
        let sbdf = sbdf(text);
        let buses = BusNumbers {
            primary: sbdf.bus(),
            secondary,
            subordinate: 9,
        };
        (sbdf, buses)
    }

    #[test]
    fn pins_are_turned_at_every_bridge() {
        let ports = [
            port("00:03.0", 1),
            port("01:00.0", 2),
            port("02:00.0", 3),
            port("02:01.0", 4),
            port("02:05.0", 5),
        ];
        let number = |text| gsi_of(sbdf(text), &ports).number();
        assert_eq!(number("03:00.0"), 16 + 3);
        assert_eq!(number("04:00.0"), 16 + 4);
        assert_eq!(number("05:00.0"), 16 + 4, "pin 5 is pin 1");
        assert_eq!(number("00:07.0"), 16 + 7);
        assert_eq!(number("00:09.0"), 16 + 1);
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
