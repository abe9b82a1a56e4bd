//! Address of a function in the guest's PCI segment.

use std::fmt;

use iommu_group::Sbdf;

/// Bus, device and function number in the guest's only PCI segment.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Bdf {
    bus: u8,
    device: u8,
    function: u8,
}

impl Bdf {
    /// Address of the host bridge.
    pub(crate) const HOST_BRIDGE: Self = Self {
        bus: 0,
        device: 0,
        function: 0,
    };

    /// The address with these numbers: device below 32, function below 8.
    pub(crate) fn new(bus: u8, device: u8, function: u8) -> Option<Self> {
        (device < 32 && function < 8).then_some(Self {
            bus,
            device,
            function,
        })
    }

    pub(super) fn bus(self) -> u8 {
        self.bus
    }

    pub(super) fn device(self) -> u8 {
        self.device
    }

    pub(super) fn function(self) -> u8 {
        self.function
    }
}

impl From<Sbdf> for Bdf {
    /// The guest has one segment, so the segment number is dropped.
    fn from(sbdf: Sbdf) -> Self {
        Self {
            bus: sbdf.bus(),
            device: sbdf.device(),
            function: sbdf.function(),
        }
    }
}

impl fmt::Display for Bdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            bus,
            device,
            function,
        } = self;
        write!(f, "{bus:02x}:{device:02x}.{function:x}")
    }
}

impl fmt::Debug for Bdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_checked() {
        assert!(Bdf::new(255, 31, 7).is_some());
        assert_eq!(Bdf::new(0, 32, 0), None);
        assert_eq!(Bdf::new(0, 0, 8), None);
    }

    #[test]
    fn addresses_are_printed_as_by_lspci() {
        assert_eq!(Bdf::new(3, 0x1f, 2).unwrap().to_string(), "03:1f.2");
    }
}
