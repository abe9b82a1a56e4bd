//! Tree of the ports and endpoints of a guest, with their addresses.

mod nodes;

use iommu_group::spec::bridge::WINDOW_ALIGN;
use iommu_group::{Address, AddressRange, Bar, Gpa, Sbdf};

use crate::VirtualPort;

use super::size_align::{Kind, SizeAlign, align_up, pack};
use super::window::{apart, hull, kind_around};
use super::{AssignError, BusResources, GuestTopology, PlacedEndpoint};

pub(super) enum Body {
    Port(Box<VirtualPort>),
    Endpoint {
        bars: Vec<(Bar, Gpa)>,
        /// Whether its BARs are at fixed addresses.
        fixed: bool,
    },
}

pub(super) struct Node {
    parent: Option<usize>,
    sbdf: Sbdf,
    body: Body,
    pub(super) windows: [Option<AddressRange<Gpa>>; 2],
    /// Bytes of a window that are reserved in addition to the needs of the functions below.
    reserve_bytes: [u64; 2],
}

/// The functions; each follows the port above it.
pub(super) struct Tree {
    pub(super) nodes: Vec<Node>,
    pub(super) resources: BusResources,
    /// Upstream ports of switches, with the sets of windows to add if possible.
    wider: Vec<(usize, Vec<Vec<AddressRange<Gpa>>>)>,
}

impl Tree {
    pub(super) fn new(resources: BusResources) -> Self {
        Self {
            nodes: Vec::new(),
            resources,
            wider: Vec::new(),
        }
    }

    pub(super) fn children(&self, parent: Option<usize>) -> impl Iterator<Item = usize> {
        let nodes = self.nodes.iter().enumerate();
        nodes
            .filter(move |(_, n)| n.parent == parent)
            .map(|(at, _)| at)
    }

    fn items(&self, at: usize, kind: Kind) -> Vec<SizeAlign> {
        match &self.nodes[at].body {
            Body::Port(_) => self
                .children(Some(at))
                .map(|c| self.need(c, kind))
                .collect(),
            Body::Endpoint { bars, .. } => bars
                .iter()
                .map(|(bar, _)| match Kind::of(bar) == kind {
                    true => SizeAlign {
                        bytes: bar.size_bytes,
                        align_bytes: bar.size_bytes,
                    },
                    false => SizeAlign::NOTHING,
                })
                .collect(),
        }
    }

    /// Whether a subtree has an endpoint with fixed BARs.
    pub(super) fn is_fixed(&self, at: usize) -> bool {
        match self.nodes.get(at).map(|node| &node.body) {
            Some(Body::Endpoint { fixed, .. }) => *fixed,
            Some(Body::Port(_)) => self.children(Some(at)).any(|child| self.is_fixed(child)),
            None => false,
        }
    }

    /// Sets the windows of the ports above fixed endpoints.
    pub(super) fn fix(&mut self) -> Result<(), AssignError> {
        let tops: Vec<usize> = self.children(None).collect();
        for top in tops {
            // If all BARs of the host are below 4 GiB, its bridges have either two windows, with the prefetchable BARs
            // of all ports next to each other, or one window with mixed BARs. Try two windows first.
            let two = !self.reaches_high(top) && self.fix_below(top, true).is_ok();
            if !two {
                self.fix_below(top, false)?;
            }
        }
        self.check_apart(None)
    }

    /// Sets the windows of the ports of one subtree. Below 4 GiB, prefetchable BARs are in the prefetchable window if
    /// `low_prefetchable`, otherwise in the memory window.
    fn fix_below(&mut self, top: usize, low_prefetchable: bool) -> Result<(), AssignError> {
        // Children follow their parents: in reverse order, the children of each port are done before the port.
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

    /// Whether a subtree has a fixed BAR above 4 GiB.
    fn reaches_high(&self, at: usize) -> bool {
        match &self.nodes[at].body {
            Body::Port(_) => self
                .children(Some(at))
                .any(|child| self.reaches_high(child)),
            Body::Endpoint { fixed, bars } => {
                let high = |(_, gpa): &(Bar, Gpa)| Kind::at(*gpa) == Kind::Prefetchable;
                *fixed && bars.iter().any(high)
            }
        }
    }

    /// The windows of the topmost ports that are placed.
    pub(super) fn windows_of_tops(&self) -> Vec<AddressRange<Gpa>> {
        let tops = self.children(None).filter_map(|top| self.nodes.get(top));
        tops.flat_map(|node| node.windows).flatten().collect()
    }

    /// Checks that fixed windows are forwarded to the bus and overlap no existing window.
    pub(super) fn check_forwarded(&self) -> Result<(), AssignError> {
        for top in self.children(None) {
            let node = &self.nodes[top];
            for window in node.windows.iter().flatten() {
                let sbdf = node.sbdf;
                if !self.leads_here(window) {
                    return Err(AssignError::OutOfReach {
                        sbdf,
                        window: *window,
                    });
                }
                let other = |taken: &&AddressRange<Gpa>| taken.intersect(window).is_some();
                if let Some(taken) = self.resources.taken.iter().find(other) {
                    return Err(AssignError::Taken {
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
        let mut forwarded = self.resources.forwarded.iter();
        forwarded.any(|range| range.contains(window))
    }

    /// Widens the windows of switches with fixed members to the first set of reserved windows that overlaps nothing
    /// else.
    pub(super) fn widen(&mut self) {
        for (up, choices) in std::mem::take(&mut self.wider) {
            let Some(root) = self.nodes.get(up).and_then(|node| node.parent) else {
                continue;
            };
            let own = self.nodes[up].windows;
            let others: Vec<_> = self
                .children(None)
                .filter(|top| *top != root)
                .flat_map(|top| self.nodes[top].windows)
                .flatten()
                .chain(self.resources.taken.iter().copied())
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

    /// The ranges of a fixed node in its parent's window of one kind.
    fn fixed_ranges(
        &self,
        at: usize,
        kind: Kind,
        low_prefetchable: bool,
    ) -> Vec<AddressRange<Gpa>> {
        let window = |(bar, gpa): &&(Bar, Gpa)| {
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

    /// Checks that the windows of ports on one bus do not overlap, whatever their kind.
    fn check_apart(&self, parent: Option<usize>) -> Result<(), AssignError> {
        let windows = self
            .children(parent)
            .flat_map(|child| self.windows_of(child));
        apart(&windows.collect::<Vec<_>>())
    }

    /// Checks that the two windows of one port do not overlap.
    fn check_apart_in(&self, at: usize) -> Result<(), AssignError> {
        apart(&self.windows_of(at).collect::<Vec<_>>())
    }

    fn windows_of(&self, at: usize) -> impl Iterator<Item = (Sbdf, AddressRange<Gpa>)> {
        let node = self.nodes.get(at);
        let windows = node.map(|node| (node.sbdf, node.windows));
        windows
            .into_iter()
            .flat_map(|(sbdf, windows)| windows.into_iter().flatten().map(move |w| (sbdf, w)))
    }

    /// Needs of the subtrees without fixed addresses, by their topmost port.
    pub(super) fn free_needs(&self, kind: Kind) -> impl Iterator<Item = (usize, SizeAlign)> {
        let tops = self.children(None).filter(|top| !self.is_fixed(*top));
        let needs = tops.map(move |top| (top, self.need(top, kind)));
        needs.filter(|(_, need)| need.bytes > 0)
    }

    /// Needs of `at` and everything below it.
    pub(super) fn need(&self, at: usize, kind: Kind) -> SizeAlign {
        let (_, mut total) = pack(&self.items(at, kind));
        let reserve = self.nodes[at].reserve_bytes[kind as usize];
        if reserve > 0 {
            total.bytes = total.bytes.saturating_add(reserve);
            // A later BAR is aligned to its size.
            total.align_bytes = total.align_bytes.max(1 << reserve.ilog2());
        }
        if let Body::Port(_) = self.nodes[at].body
            && total.bytes > 0
        {
            total.bytes = align_up(total.bytes, WINDOW_ALIGN);
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
