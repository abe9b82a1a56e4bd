//! From branches to ports and endpoints: slots and bus numbers.

use iommu_group::{Address, Gpa, Sbdf};

use super::{Body, Node, Tree};
use crate::guest::layout::window::fixed_address;
use crate::guest::layout::{Branch, DEVICES_PER_BUS, Endpoint, LayoutError, Spare};
use crate::guest::port::{BusNumbers, Link, PortKind, VirtualPort};

impl Tree {
    pub(in crate::guest::layout) fn build(
        &mut self,
        branches: &[Branch],
    ) -> Result<(), LayoutError> {
        // Switches first: devices may have any slot.
        let mut numbers = vec![0; branches.len()];
        for switches in [true, false] {
            for (number, branch) in numbers.iter_mut().zip(branches) {
                if matches!(branch, Branch::Switch { .. }) == switches {
                    *number = self.take_slot(branch, branches.len())?;
                }
            }
        }
        for (device, branch) in numbers.into_iter().zip(branches) {
            match branch {
                Branch::Device(endpoint) => {
                    let bus = self.take_buses(1)?;
                    let top = self.port(self.ground.ports, None, (device, bus, bus), endpoint.link);
                    self.endpoint(top, endpoint)?;
                }
                Branch::Switch { members, spare } => self.switch(device, members, spare)?,
            }
        }
        Ok(())
    }

    fn switch(
        &mut self,
        device: u8,
        members: &[Endpoint],
        spare: &Spare,
    ) -> Result<(), LayoutError> {
        let room = usize::from(DEVICES_PER_BUS);
        check_room("devices in one P2P domain", members.len(), room)?;
        let fastest = |a: Link, b: Link| Link {
            speed: a.speed.max(b.speed),
            width: a.width.max(b.width),
        };
        let links = members.iter().map(|e| e.link);
        let link = links.reduce(fastest).unwrap_or(Link { speed: 1, width: 1 });
        let wanted = members.len().saturating_add(spare.slots.into()).min(room);
        let slots = u8::try_from(wanted).unwrap_or(DEVICES_PER_BUS);
        let first = self.take_buses(slots + 2)?;
        let last = first + slots + 1;
        let root = self.port(PortKind::Root, None, (device, first, last), link);
        let up = self.port(PortKind::Upstream, Some(root), (0, first + 1, last), link);
        if members.iter().all(|member| member.at.is_empty()) {
            self.nodes[up].spare_bytes = [spare.memory_bytes, spare.prefetchable_bytes];
        } else {
            self.around.push((up, spare.around.clone()));
        }
        for (slot, endpoint) in (0..).zip(members) {
            let bus = first + 2 + slot;
            let down = self.port(
                PortKind::Downstream,
                Some(up),
                (slot, bus, bus),
                endpoint.link,
            );
            self.endpoint(down, endpoint)?;
        }
        Ok(())
    }

    /// The device number of the next branch.
    fn take_slot(&mut self, branch: &Branch, count: usize) -> Result<u8, LayoutError> {
        let ground = &mut self.ground;
        let (what, slots) = match branch {
            Branch::Device(_) => ("more devices", &ground.device_slots),
            Branch::Switch { .. } => ("more P2P domains", &ground.switch_slots),
        };
        let room = slots.len();
        let slot = slots.first().copied();
        let slot = slot.ok_or(LayoutError::TooMany { what, count, room })?;
        ground.device_slots.retain(|other| *other != slot);
        ground.switch_slots.retain(|other| *other != slot);
        Ok(slot)
    }

    /// The first of `count` bus numbers in a row.
    fn take_buses(&mut self, count: u8) -> Result<u8, LayoutError> {
        let free = &mut self.ground.buses;
        let run = |first: u8| first..=first.saturating_add(count - 1);
        let fits = |first: &u8| {
            let ends = first.checked_add(count - 1).is_some();
            ends && run(*first).all(|bus| free.contains(&bus))
        };
        let first = free.iter().copied().find(fits).ok_or(LayoutError::Buses)?;
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
            _ => self.ground.bus,
        }
    }

    /// A port with its device number and the buses below it, first and last.
    fn port(
        &mut self,
        kind: PortKind,
        parent: Option<usize>,
        (device, secondary, subordinate): (u8, u8, u8),
        link: Link,
    ) -> usize {
        let primary = self.bus_below(parent);
        // Unique in the guest, as slot numbers must be.
        let mut port = VirtualPort::new(kind, secondary, link);
        port.set_buses(BusNumbers {
            primary,
            secondary,
            subordinate,
        });
        self.push(parent, primary, device, Body::Port(Box::new(port)))
    }

    fn endpoint(&mut self, parent: usize, endpoint: &Endpoint) -> Result<(), LayoutError> {
        let bus = self.bus_below(Some(parent));
        let fixed = !endpoint.at.is_empty();
        let bars = endpoint
            .bars
            .iter()
            .map(|bar| (*bar, Gpa::new(0)))
            .collect();
        let node = self.push(Some(parent), bus, 0, Body::Endpoint { bars, fixed });
        let sbdf = self.nodes[node].sbdf;
        if let Body::Endpoint { bars, fixed: true } = &mut self.nodes[node].body {
            for (bar, gpa) in bars {
                *gpa = fixed_address(bar, &endpoint.at).map_err(|why| LayoutError::Fixed {
                    sbdf,
                    bar: bar.index,
                    why,
                })?;
            }
        }
        Ok(())
    }

    fn push(&mut self, parent: Option<usize>, bus: u8, device: u8, body: Body) -> usize {
        let sbdf = Sbdf::new(0, bus, device, 0).expect("device numbers were checked");
        self.nodes.push(Node {
            parent,
            sbdf,
            body,
            windows: [None; 2],
            spare_bytes: [0; 2],
        });
        self.nodes.len() - 1
    }
}

fn check_room(what: &'static str, count: usize, room: usize) -> Result<(), LayoutError> {
    if count > room {
        return Err(LayoutError::TooMany { what, count, room });
    }
    Ok(())
}
