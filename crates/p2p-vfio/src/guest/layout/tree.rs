//! The ports and endpoints of a guest, with the addresses that they get.

use iommu_group::Sbdf;

use crate::address::{Address, AddressRange, Gpa};
use crate::device::BarInfo;
use crate::guest::port::{BusNumbers, Link, PortKind, VirtualPort, WINDOW_ALIGN};

use super::extent::{Extent, Kind, pack};
use super::{Branch, Endpoint, GuestTopology, LayoutError, PlacedEndpoint};

/// First device number on the root bus that a root port can have: 0 is the host bridge.
const FIRST_ROOT_PORT: u8 = 1;
const DEVICES_PER_BUS: usize = 32;

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
}

/// The functions in the order of a depth-first walk, which is that of bus numbers.
#[derive(Default)]
pub(super) struct Tree {
    pub(super) nodes: Vec<Node>,
    last_bus: u8,
}

impl Tree {
    pub(super) fn build(&mut self, branches: &[Branch]) -> Result<(), LayoutError> {
        let room = DEVICES_PER_BUS - usize::from(FIRST_ROOT_PORT);
        check_room("root ports", branches.len(), room)?;
        for (device, branch) in (FIRST_ROOT_PORT..).zip(branches) {
            match branch {
                Branch::Device(endpoint) => {
                    let root = self.port(PortKind::Root, None, device, endpoint.link)?;
                    self.endpoint(root, endpoint)?;
                }
                Branch::Switch(endpoints) => {
                    check_room(
                        "devices in one P2P domain",
                        endpoints.len(),
                        DEVICES_PER_BUS,
                    )?;
                    let fastest = |a: Link, b: Link| Link {
                        speed: a.speed.max(b.speed),
                        width: a.width.max(b.width),
                    };
                    let links = endpoints.iter().map(|e| e.link);
                    let link = links.reduce(fastest).unwrap_or(Link { speed: 1, width: 1 });
                    let root = self.port(PortKind::Root, None, device, link)?;
                    let up = self.port(PortKind::Upstream, Some(root), 0, link)?;
                    for (slot, endpoint) in (0..).zip(endpoints) {
                        let down =
                            self.port(PortKind::Downstream, Some(up), slot, endpoint.link)?;
                        self.endpoint(down, endpoint)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// The bus directly below `parent`.
    fn bus_below(&self, parent: Option<usize>) -> u8 {
        match parent.and_then(|at| self.nodes.get(at)) {
            Some(Node {
                body: Body::Port(port),
                ..
            }) => port.buses().secondary,
            _ => 0,
        }
    }

    fn port(
        &mut self,
        kind: PortKind,
        parent: Option<usize>,
        device: u8,
        link: Link,
    ) -> Result<usize, LayoutError> {
        let primary = self.bus_below(parent);
        let secondary = self.last_bus.checked_add(1).ok_or(LayoutError::Buses)?;
        self.last_bus = secondary;
        // Unique in the guest, as slot numbers must be.
        let mut port = VirtualPort::new(kind, secondary, link);
        port.set_buses(BusNumbers {
            primary,
            secondary,
            subordinate: secondary,
        });
        self.widen(parent, secondary);
        Ok(self.push(parent, primary, device, Body::Port(Box::new(port))))
    }

    /// Extends the bus ranges of all ports from `at` up to reach `subordinate`.
    fn widen(&mut self, mut at: Option<usize>, subordinate: u8) {
        while let Some(node) = at.and_then(|at| self.nodes.get_mut(at)) {
            if let Body::Port(port) = &mut node.body {
                let buses = port.buses();
                port.set_buses(BusNumbers {
                    subordinate,
                    ..buses
                });
            }
            at = node.parent;
        }
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

    pub(super) fn finish(self) -> GuestTopology {
        let mut topology = GuestTopology {
            ports: Vec::new(),
            endpoints: Vec::new(),
        };
        for node in self.nodes {
            match node.body {
                Body::Port(mut port) => {
                    let [memory, prefetchable] = node.windows;
                    port.set_windows(memory, prefetchable);
                    topology.ports.push((node.sbdf, *port));
                }
                Body::Endpoint { bars, .. } => topology.endpoints.push(PlacedEndpoint {
                    sbdf: node.sbdf,
                    bars,
                }),
            }
        }
        topology
    }
}

/// Where a BAR must be, if a bridge can forward that (PCI-to-PCI bridge r1.2 §3.2.5.8: only the prefetchable window
/// reaches above 4 GiB).
fn fixed_address(bar: &BarInfo, at: &[(u8, Gpa)]) -> Result<Gpa, &'static str> {
    let known = at.iter().find(|(index, _)| *index == bar.index);
    let gpa = known.map(|(_, gpa)| *gpa).filter(|gpa| gpa.value() != 0);
    let gpa = gpa.ok_or("the host has assigned none")?;
    if !gpa.value().is_multiple_of(bar.size_bytes) {
        return Err("that is not a multiple of its size");
    }
    if Kind::at(gpa) == Kind::Prefetchable && Kind::of(bar) == Kind::Memory {
        return Err("that is above 4 GiB, and it is not prefetchable");
    }
    Ok(gpa)
}

/// The smallest bridge window that holds all ranges.
fn hull(ranges: &[AddressRange<Gpa>]) -> Option<AddressRange<Gpa>> {
    let start = ranges.iter().map(|r| r.start().value()).min()? / WINDOW_ALIGN * WINDOW_ALIGN;
    let end = ranges.iter().map(|r| r.end().value()).max()?;
    let end = end.checked_next_multiple_of(WINDOW_ALIGN)?;
    AddressRange::new(Gpa::new(start), end - start)
}

/// No window may overlap another.
fn apart(windows: &[(Sbdf, AddressRange<Gpa>)]) -> Result<(), LayoutError> {
    for (at, (a, first)) in windows.iter().enumerate() {
        for (b, second) in windows.iter().skip(at + 1) {
            if first.intersect(second).is_some() {
                return Err(LayoutError::Overlap {
                    a: *a,
                    first: *first,
                    b: *b,
                    second: *second,
                });
            }
        }
    }
    Ok(())
}

fn check_room(what: &'static str, count: usize, room: usize) -> Result<(), LayoutError> {
    if count > room {
        return Err(LayoutError::TooMany { what, count, room });
    }
    Ok(())
}
