//! A request on its way up, port by port: what the rules about memory are tested against.

use iommu_group::{AcsBits, Address, Function, GroupModel, PortType, Sbdf, Topology};

/// Where a request ends, if everybody who may take it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum End {
    /// At the root complex, which has the IOMMU translate it.
    RootComplex,
    /// At somebody else, untranslated.
    Taken,
    /// Nowhere: it is an Unsupported Request or an ACS violation.
    Dropped,
}

/// What a port does with a request for another port of its switch.
#[derive(Debug, PartialEq, Eq)]
enum RequestRoute {
    Straight,
    Redirect,
    BlockReason,
}

/// A machine in which requests walk.
pub(crate) struct Walk<'t> {
    topology: &'t Topology,
    model: &'t GroupModel<'t>,
}

impl<'t> Walk<'t> {
    pub(crate) fn new(topology: &'t Topology, model: &'t GroupModel<'t>) -> Self {
        Self { topology, model }
    }

    /// Where a request of `device` with an untranslated address ends.
    pub(crate) fn end(&self, device: Sbdf, address: u64) -> End {
        let mut at = self.topology.get(device).unwrap();
        if self.inside(at, address) {
            return End::Taken;
        }
        while let Some(port) = self.topology.upstream(at.sbdf()) {
            let end = match port.port_type() {
                PortType::SwitchDownstream => self.at_switch(port, address),
                PortType::RootPort => self.at_root_port(port, address),
                PortType::SwitchUpstream => self.inside(port, address).then_some(End::Taken),
                // On a conventional bus everybody sees the request.
                _ => claims(self.topology, port, address).then_some(End::Taken),
            };
            if let Some(end) = end {
                return end;
            }
            at = port;
        }
        End::RootComplex
    }

    /// At a downstream port, which is reached from below; `None` if it goes on to the upstream port and through it.
    fn at_switch(&self, port: &Function, address: u64) -> Option<End> {
        let upstream = self.topology.upstream(port.sbdf()).unwrap();
        if bar_at(self.topology, port, address) || bar_at(self.topology, upstream, address) {
            return Some(End::Taken);
        }
        if in_window(port, address) {
            return (!self.has(port, AcsBits::UF)).then_some(End::Dropped);
        }
        let others = self.topology.children(upstream.sbdf());
        for other in others.filter(|other| other.sbdf() != port.sbdf()) {
            if claims(self.topology, other, address) {
                return match self.turn(port, other) {
                    RequestRoute::Straight => Some(End::Taken),
                    RequestRoute::BlockReason => Some(End::Dropped),
                    RequestRoute::Redirect => None,
                };
            }
        }
        in_window(upstream, address).then_some(End::Dropped)
    }

    fn at_root_port(&self, port: &Function, address: u64) -> Option<End> {
        if in_window(port, address) && !self.has(port, AcsBits::UF) {
            return Some(End::Dropped);
        }
        let acs = port.acs().registers();
        let alone = acs.is_some_and(|acs| !acs.capability.contains(AcsBits::RR));
        if alone || self.turn(port, port) == RequestRoute::Redirect {
            return None;
        }
        // The root complex may route it to whatever else is there.
        let top = |other: &&Function| self.topology.upstream(other.sbdf()).is_none();
        let others = self.topology.functions().iter().filter(top);
        let mut others = others.filter(|other| other.sbdf() != port.sbdf());
        let taken = others.any(|other| claims(self.topology, other, address));
        taken.then_some(End::Taken)
    }

    /// Whether another function of the device takes it, inside the device.
    fn inside(&self, function: &Function, address: u64) -> bool {
        let acs = function.acs().registers();
        if acs.is_none_or(|acs| !acs.capability.contains(AcsBits::RR))
            || self.has(function, AcsBits::RR) && !self.has(function, AcsBits::EC)
        {
            return false;
        }
        let at = function.sbdf();
        let same = |other: &&Function| {
            let other = other.sbdf();
            other != at && other.bus() == at.bus() && other.device() == at.device()
        };
        let mut others = self.topology.functions().iter().filter(same);
        others.any(|other| claims(self.topology, other, address))
    }

    fn has(&self, port: &Function, bit: AcsBits) -> bool {
        let control = self.model.acs_control(port.sbdf());
        let capability = port.acs().registers().map(|acs| acs.capability);
        control.is_some_and(|control| control.contains(bit))
            && capability.is_some_and(|capability| capability.contains(bit))
    }

    fn turn(&self, ingress: &Function, egress: &Function) -> RequestRoute {
        let redirect = self.has(ingress, AcsBits::RR);
        if self.has(ingress, AcsBits::EC) {
            let number = egress
                .config()
                .express
                .unwrap()
                .link
                .map(|link| link.port_number);
            let vector = self.model.egress(ingress.sbdf());
            let stops = vector
                .zip(number)
                .and_then(|(vector, number)| vector.stops(number));
            // A vector without a bit for the port may have it open.
            return match (stops, redirect) {
                (Some(true), true) => RequestRoute::Redirect,
                (Some(true), false) => RequestRoute::BlockReason,
                (Some(false) | None, _) => RequestRoute::Straight,
            };
        }
        if redirect {
            RequestRoute::Redirect
        } else {
            RequestRoute::Straight
        }
    }
}

fn claims(topology: &Topology, function: &Function, address: u64) -> bool {
    in_window(function, address) || bar_at(topology, function, address)
}

fn in_window(function: &Function, address: u64) -> bool {
    let windows = function.windows();
    windows.is_some_and(|windows| {
        windows
            .memory_windows()
            .any(|range| range.contains(&address))
    })
}

fn bar_at(topology: &Topology, function: &Function, address: u64) -> bool {
    let mut bars = topology.bars(function).into_iter();
    bars.any(|bar| {
        let start = bar.bus_address.unwrap().value();
        (start..start + bar.size_bytes).contains(&address)
    })
}
