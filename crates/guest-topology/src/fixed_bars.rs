//! Tracks whether the BARs that a host switch routes by bus address are at these addresses.

use iommu_group::{AddressRange, Bar, Gpa};

/// A BAR and its address at the last scan.
#[derive(Clone, Debug)]
struct FixedBar {
    bar: u8,
    bus_address: Gpa,
    at: Gpa,
}

/// The BARs of one device that peers reach directly through a host switch, by bus address. If the guest moves such a
/// BAR, requests to it take another route.
#[derive(Clone, Debug, Default)]
pub struct FixedBars(Vec<FixedBar>);

/// A BAR that the guest has moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BarMove {
    /// Index of the BAR.
    pub bar: u8,
    /// Its former address.
    pub from: Gpa,
    /// Its current address.
    pub to: Gpa,
    /// The address at which peers reach it directly through the switch.
    pub bus_address: Gpa,
}

impl BarMove {
    /// Whether the BAR is back at its bus address.
    #[must_use]
    pub fn is_home(&self) -> bool {
        self.to == self.bus_address
    }
}

impl FixedBars {
    /// Tracks the BARs that have a bus address. Each is assumed to be at that address.
    #[must_use]
    pub fn new(bars: &[Bar]) -> Self {
        let fixed = bars.iter().filter_map(|bar| {
            let bus_address = Gpa::at_bus_address(bar.bus_address?);
            Some(FixedBar {
                bar: bar.index,
                bus_address,
                at: bus_address,
            })
        });
        Self(fixed.collect())
    }

    /// Compares the current ranges of the BARs, by index, with those of the last scan, and returns the moves. A BAR
    /// without a range (`None`) at the moment counts as not moved.
    pub fn scan(&mut self, live: impl Fn(u8) -> Option<AddressRange<Gpa>>) -> Vec<BarMove> {
        let moves = self.0.iter_mut().filter_map(|fixed| {
            let to = live(fixed.bar)?.start();
            let from = std::mem::replace(&mut fixed.at, to);
            (from != to).then_some(BarMove {
                bar: fixed.bar,
                from,
                to,
                bus_address: fixed.bus_address,
            })
        });
        moves.collect()
    }
}

#[cfg(test)]
mod tests {
    use iommu_group::{Address, BusAddress, Space};

    use super::*;

    #[test]
    fn moves_and_returns_are_reported_once() {
        let bar = Bar {
            index: 2,
            space: Space::Memory64,
            prefetchable: true,
            bus_address: Some(BusAddress::new(0xc0_0000_0000)),
            size_bytes: 4096,
        };
        let mut fixed = FixedBars::new(&[bar]);
        let at = |start| move |_| AddressRange::new(Gpa::new(start), 4096);
        assert_eq!(fixed.scan(at(0xc0_0000_0000)), []);
        assert_eq!(fixed.scan(|_| None), []);
        let [away] = fixed.scan(at(0x2_0000_0000))[..] else {
            panic!("one move");
        };
        assert_eq!((away.bar, away.is_home()), (2, false));
        assert_eq!(fixed.scan(at(0x2_0000_0000)), []);
        let [back] = fixed.scan(at(0xc0_0000_0000))[..] else {
            panic!("one move");
        };
        assert_eq!((back.from, back.is_home()), (away.to, true));
    }

    #[test]
    fn bars_without_a_bus_address_are_not_fixed() {
        let bar = Bar {
            index: 0,
            space: Space::Memory32,
            prefetchable: false,
            bus_address: None,
            size_bytes: 4096,
        };
        let mut fixed = FixedBars::new(&[bar]);
        assert_eq!(fixed.scan(|_| AddressRange::new(Gpa::new(0), 4096)), []);
    }
}
