//! Slots: places for a port and everything below it, which stay the same when the guest renumbers buses.

use std::fmt;

use crate::resources::DEVICES_PER_BUS;

/// A bus with slots. It is not named by its bus number, which the guest may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SlotBus {
    /// The root bus.
    Root,
    /// The bus inside the switch in this slot of the root bus.
    Switch(u8),
}

/// A slot for a port and everything below it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot {
    bus: SlotBus,
    device: u8,
}

impl Slot {
    /// The slot with this device number, 0 to 31.
    #[must_use]
    pub fn new(bus: SlotBus, device: u8) -> Option<Self> {
        (device < DEVICES_PER_BUS).then_some(Self { bus, device })
    }

    /// The bus of the slot.
    #[must_use]
    pub fn bus(self) -> SlotBus {
        self.bus
    }

    /// The device number, 0 to 31.
    #[must_use]
    pub fn device(self) -> u8 {
        self.device
    }

    /// Whether `other` is this slot or below the device in this slot.
    #[must_use]
    pub fn holds(self, other: Self) -> bool {
        self == other || self.bus == SlotBus::Root && other.bus == SlotBus::Switch(self.device)
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.bus {
            SlotBus::Root => write!(f, "slot {}", self.device),
            SlotBus::Switch(root) => write!(f, "slot {} of the switch in {root}", self.device),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_switch_holds_the_slots_of_its_bus() {
        let slot = |bus, device| Slot::new(bus, device).unwrap();
        let root = slot(SlotBus::Root, 3);
        assert!(root.holds(root));
        assert!(root.holds(slot(SlotBus::Switch(3), 0)));
        assert!(!root.holds(slot(SlotBus::Switch(2), 3)));
        assert!(!root.holds(slot(SlotBus::Root, 2)));
        assert!(!slot(SlotBus::Switch(3), 3).holds(root));
        assert_eq!(Slot::new(SlotBus::Root, 32), None);
    }
}
