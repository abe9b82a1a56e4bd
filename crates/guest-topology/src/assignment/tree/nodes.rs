//! Nodes for the ports and endpoints of subtrees, with device and bus numbers.

use iommu_group::{Address, Gpa, Link, Sbdf};

use super::{Body, Node, Tree};
use crate::assignment::AssignError;
use crate::assignment::window::fixed_address;
use crate::resources::DEVICES_PER_BUS;
use crate::{BusNumbers, Endpoint, PortKind, Reserve, Subtree, VirtualPort};

impl Tree {
    pub(in crate::assignment) fn build(&mut self, subtrees: &[Subtree]) -> Result<(), AssignError> {
        // Switches first: devices can use any slot.
        let mut numbers = vec![0; subtrees.len()];
        for switches in [true, false] {
            for (number, subtree) in numbers.iter_mut().zip(subtrees) {
                if matches!(subtree, Subtree::Switch { .. }) == switches {
                    *number = self.take_slot(subtree, subtrees.len())?;
                }
            }
        }
        for (device, subtree) in numbers.into_iter().zip(subtrees) {
            match subtree {
                Subtree::Endpoint(endpoint) => {
                    let bus = self.take_buses(1)?;
                    let top = self.port(
                        self.resources.ports,
                        None,
                        (device, bus, bus),
                        endpoint.link(),
                    );
                    self.endpoint(top, endpoint)?;
                }
                Subtree::Switch { members, reserve } => self.switch(device, members, reserve)?,
            }
        }
        Ok(())
    }

    fn switch(
        &mut self,
        device: u8,
        members: &[Endpoint],
        reserve: &Reserve,
    ) -> Result<(), AssignError> {
        let room = usize::from(DEVICES_PER_BUS);
        check_room("devices in one P2P domain", members.len(), room)?;
        let links = || members.iter().map(Endpoint::link);
        let generation = links().map(|link| link.generation).max();
        let lanes = links().map(|link| link.lanes).max();
        let link = match (generation, lanes) {
            (Some(generation), Some(lanes)) => Link::at_most(generation, lanes),
            _ => Link::SLOWEST,
        };
        let wanted = members.len().saturating_add(reserve.slots.into()).min(room);
        let slots = u8::try_from(wanted).unwrap_or(DEVICES_PER_BUS);
        let first = self.take_buses(slots + 2)?;
        let last = first + slots + 1;
        let root = self.port(PortKind::Root, None, (device, first, last), link);
        let up = self.port(PortKind::Upstream, Some(root), (0, first + 1, last), link);
        if !members.iter().any(Endpoint::is_fixed) {
            self.nodes[up].reserve_bytes = [reserve.memory_bytes, reserve.prefetchable_bytes];
        } else {
            self.wider.push((up, reserve.windows.clone()));
        }
        for (slot, endpoint) in (0..).zip(members) {
            let bus = first + 2 + slot;
            let down = self.port(
                PortKind::Downstream,
                Some(up),
                (slot, bus, bus),
                endpoint.link(),
            );
            self.endpoint(down, endpoint)?;
        }
        Ok(())
    }

    /// The device number of the next subtree.
    fn take_slot(&mut self, subtree: &Subtree, count: usize) -> Result<u8, AssignError> {
        let resources = &mut self.resources;
        let (what, slots) = match subtree {
            Subtree::Endpoint(_) => ("more devices", &resources.device_slots),
            Subtree::Switch { .. } => ("more P2P domains", &resources.switch_slots),
        };
        let room = slots.len();
        let slot = slots.iter().copied().find(|slot| *slot < DEVICES_PER_BUS);
        let slot = slot.ok_or(AssignError::TooMany { what, count, room })?;
        resources.device_slots.retain(|other| *other != slot);
        resources.switch_slots.retain(|other| *other != slot);
        Ok(slot)
    }

    /// The first of `count` bus numbers in a row.
    fn take_buses(&mut self, count: u8) -> Result<u8, AssignError> {
        let free = &mut self.resources.buses;
        let run = |first: u8| first..=first.saturating_add(count - 1);
        let fits = |first: &u8| {
            let ends = first.checked_add(count - 1).is_some();
            ends && run(*first).all(|bus| free.contains(&bus))
        };
        let first = free.iter().copied().find(fits).ok_or(AssignError::Buses)?;
        free.retain(|bus| !run(first).contains(bus));
        Ok(first)
    }

    /// The bus directly below `parent`.
    fn bus_below(&self, parent: Option<usize>) -> u8 {
        match parent.and_then(|at| self.nodes.get(at)) {
            Some(Node {
                body: Body::Port(port),
                ..
            }) => port.buses().secondary,
            _ => self.resources.bus,
        }
    }

    /// Adds a port with its device number and the first and last bus below it.
    fn port(
        &mut self,
        kind: PortKind,
        parent: Option<usize>,
        (device, secondary, subordinate): (u8, u8, u8),
        link: Link,
    ) -> usize {
        let primary = self.bus_below(parent);
        // The bus number is unique in the guest, as the slot number must be.
        let mut port = VirtualPort::new(kind, secondary, link);
        port.set_buses(BusNumbers {
            primary,
            secondary,
            subordinate,
        });
        self.push(parent, primary, device, Body::Port(Box::new(port)))
    }

    fn endpoint(&mut self, parent: usize, endpoint: &Endpoint) -> Result<(), AssignError> {
        let bus = self.bus_below(Some(parent));
        let fixed = endpoint.is_fixed();
        let bars = endpoint
            .bars()
            .iter()
            .map(|bar| (*bar, Gpa::new(0)))
            .collect();
        let node = self.push(Some(parent), bus, 0, Body::Endpoint { bars, fixed });
        let sbdf = self.nodes[node].sbdf;
        if let Body::Endpoint { bars, fixed: true } = &mut self.nodes[node].body {
            for (bar, gpa) in bars {
                *gpa = fixed_address(bar).map_err(|why| AssignError::Fixed {
                    sbdf,
                    bar: bar.index,
                    why,
                })?;
            }
        }
        Ok(())
    }

    fn push(&mut self, parent: Option<usize>, bus: u8, device: u8, body: Body) -> usize {
        let sbdf = Sbdf::from_devfn(0, bus, device << 3);
        self.nodes.push(Node {
            parent,
            sbdf,
            body,
            windows: [None; 2],
            reserve_bytes: [0; 2],
        });
        self.nodes.len() - 1
    }
}

fn check_room(what: &'static str, count: usize, room: usize) -> Result<(), AssignError> {
    if count > room {
        return Err(AssignError::TooMany { what, count, room });
    }
    Ok(())
}
