//! The ports and endpoints of a guest, with the addresses that they get.

use iommu_group::Sbdf;

use crate::address::{Address, AddressRange, Gpa};
use crate::device::BarInfo;
use crate::guest::port::{BusNumbers, Link, PortKind, VirtualPort, WINDOW_ALIGN};

use super::extent::{Extent, Kind, pack};
use super::window::{apart, fixed_address, hull, kind_around};
use super::{
    Branch, DEVICES_PER_BUS, Endpoint, Ground, GuestTopology, LayoutError, PlacedEndpoint, Spare,
};

pub(super) enum Body {
    Port(Box<VirtualPort>),
    Endpoint {
        bars: Vec<(BarInfo, Gpa)>,
        /// Its BARs are where they must be.
        fixed: bool,
    },
}

pub(super) struct Node {
    parent: Option<usize>,
    sbdf: Sbdf,
    body: Body,
    pub(super) windows: [Option<AddressRange<Gpa>>; 2],
    /// What a window has beyond the needs of what is below, in bytes.
    spare_bytes: [u64; 2],
}

/// The functions, each after the port above it.
pub(super) struct Tree {
    pub(super) nodes: Vec<Node>,
    pub(super) ground: Ground,
    /// Windows that a switch takes in if it can: its upstream port, and the choices.
    around: Vec<(usize, Vec<Vec<AddressRange<Gpa>>>)>,
}

/// How many buses a switch takes: that of each slot, its own, and the one below its root port.
fn switch_buses(members: &[Endpoint], spare: &Spare) -> u8 {
    let slots = members.len().saturating_add(spare.slots.into());
    let slots = u8::try_from(slots).unwrap_or(DEVICES_PER_BUS);
    slots.min(DEVICES_PER_BUS) + 2
}

impl Branch {
    /// How many bus numbers it takes.
    pub fn buses(&self) -> u8 {
        match self {
            Self::Device(_) => 1,
            Self::Switch { members, spare } => switch_buses(members, spare),
        }
    }
}

impl Tree {
    pub(super) fn new(ground: Ground) -> Self {
        Self {
            nodes: Vec::new(),
            ground,
            around: Vec::new(),
        }
    }

    pub(super) fn build(&mut self, branches: &[Branch]) -> Result<(), LayoutError> {
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
        let buses = switch_buses(members, spare);
        let first = self.take_buses(buses)?;
        let last = first + buses - 1;
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
        let first = free.iter().copied().find(fits);
        let first = first.ok_or(LayoutError::Buses { needed: count })?;
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

    pub(super) fn children(&self, parent: Option<usize>) -> impl Iterator<Item = usize> {
        let nodes = self.nodes.iter().enumerate();
        nodes
            .filter(move |(_, n)| n.parent == parent)
            .map(|(at, _)| at)
    }

    fn items(&self, at: usize, kind: Kind) -> Vec<Extent> {
        match &self.nodes[at].body {
            Body::Port(_) => self
                .children(Some(at))
                .map(|c| self.need(c, kind))
                .collect(),
            Body::Endpoint { bars, .. } => bars
                .iter()
                .map(|(bar, _)| Extent {
                    bytes: if Kind::of(bar) == kind {
                        bar.size_bytes
                    } else {
                        0
                    },
                    align_bytes: if Kind::of(bar) == kind {
                        bar.size_bytes
                    } else {
                        1
                    },
                })
                .collect(),
        }
    }

    /// Whether a branch has an endpoint that must be where it is.
    pub(super) fn is_fixed(&self, at: usize) -> bool {
        match self.nodes.get(at).map(|node| &node.body) {
            Some(Body::Endpoint { fixed, .. }) => *fixed,
            Some(Body::Port(_)) => self.children(Some(at)).any(|child| self.is_fixed(child)),
            None => false,
        }
    }

    /// Gives the ports above fixed endpoints the windows that these need.
    pub(super) fn fix(&mut self) -> Result<(), LayoutError> {
        let tops: Vec<usize> = self.children(None).collect();
        for top in tops {
            // On a host with all BARs below 4 GiB, the prefetchable ones of all ports are together, apart from the
            // others, as its own bridges have two windows too; or they are mixed, if its bridges have one.
            let two = !self.reaches_high(top) && self.fix_below(top, true).is_ok();
            if !two {
                self.fix_below(top, false)?;
            }
        }
        self.check_apart(None)
    }

    /// Does so for the ports of one branch. Below 4 GiB, prefetchable BARs are in the prefetchable window if
    /// `low_prefetchable`.
    fn fix_below(&mut self, top: usize, low_prefetchable: bool) -> Result<(), LayoutError> {
        // Children come after their parents, so that going backwards each port finds its children done.
        for at in (top..self.nodes.len()).rev() {
            if matches!(self.nodes[at].body, Body::Port(_)) && self.top_of(at) == top {
                for kind in [Kind::Memory, Kind::Prefetchable] {
                    let below: Vec<_> = self
                        .children(Some(at))
                        .flat_map(|c| self.fixed_ranges(c, kind, low_prefetchable))
                        .collect();
                    self.nodes[at].windows[kind as usize] = hull(&below);
                }
                self.check_apart(Some(at))?;
            }
        }
        self.check_apart_in(top)
    }

    /// The topmost port above a node.
    fn top_of(&self, mut at: usize) -> usize {
        while let Some(parent) = self.nodes[at].parent {
            at = parent;
        }
        at
    }

    /// Whether a branch has a fixed BAR above 4 GiB.
    fn reaches_high(&self, at: usize) -> bool {
        match &self.nodes[at].body {
            Body::Port(_) => self
                .children(Some(at))
                .any(|child| self.reaches_high(child)),
            Body::Endpoint { fixed, bars } => {
                let high = |(_, gpa): &(BarInfo, Gpa)| Kind::at(*gpa) == Kind::Prefetchable;
                *fixed && bars.iter().any(high)
            }
        }
    }

    /// The windows of the topmost ports, as far as they are placed.
    pub(super) fn windows_of_tops(&self) -> Vec<AddressRange<Gpa>> {
        let tops = self.children(None).filter_map(|top| self.nodes.get(top));
        tops.flat_map(|node| node.windows).flatten().collect()
    }

    /// Windows that must be where they are must lead here, and nothing may be there yet.
    pub(super) fn check_forwarded(&self) -> Result<(), LayoutError> {
        for top in self.children(None) {
            let node = &self.nodes[top];
            for window in node.windows.iter().flatten() {
                let sbdf = node.sbdf;
                if !self.leads_here(window) {
                    return Err(LayoutError::OutOfReach {
                        sbdf,
                        window: *window,
                    });
                }
                let other = |taken: &&AddressRange<Gpa>| taken.intersect(window).is_some();
                if let Some(taken) = self.ground.taken.iter().find(other) {
                    return Err(LayoutError::Taken {
                        sbdf,
                        window: *window,
                        taken: *taken,
                    });
                }
            }
        }
        Ok(())
    }

    fn leads_here(&self, window: &AddressRange<Gpa>) -> bool {
        let mut forwarded = self.ground.forwarded.iter();
        forwarded.any(|range| range.contains(window))
    }

    /// Lets switches with members at bus addresses take in the first of the windows around them that are in nobody's
    /// way.
    pub(super) fn widen(&mut self) {
        for (up, choices) in std::mem::take(&mut self.around) {
            let Some(root) = self.nodes.get(up).and_then(|node| node.parent) else {
                continue;
            };
            let own = self.nodes[up].windows;
            let others: Vec<_> = self
                .children(None)
                .filter(|top| *top != root)
                .flat_map(|top| self.nodes[top].windows)
                .flatten()
                .chain(self.ground.taken.iter().copied())
                .collect();
            let wider = choices.into_iter().find_map(|around| {
                let wide = [Kind::Memory, Kind::Prefetchable].map(|kind| {
                    let mut all: Vec<_> = own[kind as usize].into_iter().collect();
                    all.extend(
                        around
                            .iter()
                            .filter(|range| kind_around(range, &own) == kind),
                    );
                    hull(&all)
                });
                let [memory, prefetchable] = wide;
                let apart = match (memory, prefetchable) {
                    (Some(a), Some(b)) => a.intersect(&b).is_none(),
                    _ => true,
                };
                let free = |window: &AddressRange<Gpa>| {
                    let clear = others.iter().all(|other| other.intersect(window).is_none());
                    clear && self.leads_here(window)
                };
                (apart && wide.iter().flatten().all(free)).then_some(wide)
            });
            if let Some(windows) = wider {
                self.nodes[up].windows = windows;
                self.nodes[root].windows = windows;
            }
        }
    }

    /// The ranges that a node takes of its parent's window of one kind, for it is fixed.
    fn fixed_ranges(
        &self,
        at: usize,
        kind: Kind,
        low_prefetchable: bool,
    ) -> Vec<AddressRange<Gpa>> {
        let window = |(bar, gpa): &&(BarInfo, Gpa)| {
            if low_prefetchable {
                Kind::of(bar) == kind
            } else {
                Kind::at(*gpa) == kind
            }
        };
        match &self.nodes[at].body {
            Body::Port(_) => self.nodes[at].windows[kind as usize].into_iter().collect(),
            Body::Endpoint { fixed: false, .. } => Vec::new(),
            Body::Endpoint { bars, .. } => bars
                .iter()
                .filter(window)
                .filter_map(|(bar, gpa)| AddressRange::new(*gpa, bar.size_bytes))
                .collect(),
        }
    }

    /// Windows of ports on one bus must not overlap, whatever their kind.
    fn check_apart(&self, parent: Option<usize>) -> Result<(), LayoutError> {
        let windows = self
            .children(parent)
            .flat_map(|child| self.windows_of(child));
        apart(&windows.collect::<Vec<_>>())
    }

    /// The two windows of one port must not overlap.
    fn check_apart_in(&self, at: usize) -> Result<(), LayoutError> {
        apart(&self.windows_of(at).collect::<Vec<_>>())
    }

    fn windows_of(&self, at: usize) -> impl Iterator<Item = (Sbdf, AddressRange<Gpa>)> {
        let node = self.nodes.get(at);
        let windows = node.map(|node| (node.sbdf, node.windows));
        windows
            .into_iter()
            .flat_map(|(sbdf, windows)| windows.into_iter().flatten().map(move |w| (sbdf, w)))
    }

    /// What `at` and everything below it needs.
    pub(super) fn need(&self, at: usize, kind: Kind) -> Extent {
        let (_, mut total) = pack(&self.items(at, kind));
        let spare = self.nodes[at].spare_bytes[kind as usize];
        if spare > 0 {
            total.bytes = total.bytes.saturating_add(spare);
            // A BAR that comes later is aligned to its size.
            total.align_bytes = total.align_bytes.max(1 << spare.ilog2());
        }
        if let Body::Port(_) = self.nodes[at].body
            && total.bytes > 0
        {
            total.bytes = total.bytes.next_multiple_of(WINDOW_ALIGN);
            total.align_bytes = total.align_bytes.max(WINDOW_ALIGN);
        }
        total
    }

    pub(super) fn place(&mut self, at: usize, kind: Kind, base: u64) {
        let (offsets, _) = pack(&self.items(at, kind));
        let need = self.need(at, kind);
        let children: Vec<usize> = self.children(Some(at)).collect();
        match &mut self.nodes[at] {
            Node {
                body: Body::Endpoint { bars, .. },
                ..
            } => {
                for ((bar, gpa), offset) in bars.iter_mut().zip(offsets) {
                    if Kind::of(bar) == kind {
                        *gpa = Gpa::new(base + offset);
                    }
                }
            }
            Node { windows, .. } => {
                windows[kind as usize] = AddressRange::new(Gpa::new(base), need.bytes);
                for (child, offset) in children.into_iter().zip(offsets) {
                    self.place(child, kind, base + offset);
                }
            }
        }
    }

    /// The ports above a node, from the top.
    fn above(&self, at: usize) -> Vec<Sbdf> {
        let mut ports = Vec::new();
        let mut parent = self.nodes[at].parent;
        while let Some(node) = parent.and_then(|at| self.nodes.get(at)) {
            ports.insert(0, node.sbdf);
            parent = node.parent;
        }
        ports
    }

    pub(super) fn finish(self) -> GuestTopology {
        let above: Vec<_> = (0..self.nodes.len()).map(|at| self.above(at)).collect();
        let mut topology = GuestTopology {
            ports: Vec::new(),
            endpoints: Vec::new(),
        };
        for (node, above) in self.nodes.into_iter().zip(above) {
            match node.body {
                Body::Port(mut port) => {
                    let [memory, prefetchable] = node.windows;
                    port.set_windows(memory, prefetchable);
                    topology.ports.push((node.sbdf, *port));
                }
                Body::Endpoint { bars, .. } => topology.endpoints.push(PlacedEndpoint {
                    sbdf: node.sbdf,
                    ports: above,
                    bars,
                }),
            }
        }
        topology
    }
}

fn check_room(what: &'static str, count: usize, room: usize) -> Result<(), LayoutError> {
    if count > room {
        return Err(LayoutError::TooMany { what, count, room });
    }
    Ok(())
}
