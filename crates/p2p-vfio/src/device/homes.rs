//! BARs that a switch of the host reaches by bus address: whether they are there.

use iommu_group::{AddressRange, Gpa};

use super::DeviceEvent;

/// A BAR with the place where peers reach it straight across the switch.
struct Home {
    bar: u8,
    bus_address: Gpa,
    /// Where it was when it was last seen.
    at: Gpa,
}

/// Those BARs of one device; none if the IOMMU sees all requests of its peers.
pub(super) struct Homes(Vec<Home>);

impl Homes {
    pub(super) fn new(bus_addresses: Vec<(u8, Gpa)>) -> Self {
        let home = |(bar, bus_address)| Home {
            bar,
            bus_address,
            at: bus_address,
        };
        Self(bus_addresses.into_iter().map(home).collect())
    }

    /// Looks where BARs are now: what it means that some are elsewhere than before. One that is nowhere
    /// for the moment has not moved yet.
    pub(super) fn look(
        &mut self,
        live: impl Fn(u8) -> Option<AddressRange<Gpa>>,
    ) -> Vec<DeviceEvent> {
        let moved = self.0.iter_mut().filter_map(|home| {
            let to = live(home.bar)?.start();
            let from = std::mem::replace(&mut home.at, to);
            (from != to).then_some((&*home, from))
        });
        moved
            .map(|(home, from)| {
                let Home {
                    bar,
                    bus_address,
                    at,
                } = *home;
                if at == bus_address {
                    return DeviceEvent::RouteRestored {
                        bar,
                        from,
                        bus_address,
                    };
                }
                DeviceEvent::RouteDegraded {
                    bar,
                    from,
                    to: at,
                    bus_address,
                }
            })
            .collect()
    }
}
