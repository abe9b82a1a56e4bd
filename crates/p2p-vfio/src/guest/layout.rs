//! Where the guest finds its devices: bus numbers, bridge windows and BARs, as firmware would leave
//! them. A pure function of the devices' BARs and the windows of the host bridge.
//!
//! ```text
//! bus 0 ─┬─ host bridge
//!        ├─ root port ── upstream ─┬─ downstream ── device     a P2P domain
//!        │                         └─ downstream ── device
//!        └─ root port ── device                                a device outside of any
//! ```

use iommu_group::Sbdf;
use thiserror::Error;

use crate::address::{Address, AddressRange, Gpa};
use crate::device::BarInfo;

use super::port::{BusNumbers, Link, PortKind, VirtualPort, WINDOW_ALIGN};

/// A device that needs a place.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Its memory BARs.
    pub bars: Vec<BarInfo>,
    /// Where each of them must be, by number, if the host's switch reaches them by bus address; empty if anywhere.
    pub at: Vec<(u8, Gpa)>,
    /// Its link, which the port above it shows as well.
    pub link: Link,
}

/// Something below a root port of its own.
#[derive(Clone, Debug)]
pub enum Branch {
    /// One device.
    Device(Endpoint),
    /// The members of a P2P domain, below one switch.
    Switch(Vec<Endpoint>),
}

/// Where BARs may be that can be anywhere.
#[derive(Clone, Debug)]
pub struct Apertures {
    /// Below 4 GiB: for BARs that are not both 64-bit and prefetchable.
    pub memory: Vec<AddressRange<Gpa>>,
    /// For BARs that are 64-bit and prefetchable.
    pub prefetchable: Vec<AddressRange<Gpa>>,
}

/// Where an endpoint is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlacedEndpoint {
    /// Its address in the guest.
    pub sbdf: Sbdf,
    /// Its BARs with their addresses, in the order of their numbers.
    pub bars: Vec<(BarInfo, Gpa)>,
}

/// All of the guest's topology below the host bridge.
#[derive(Debug)]
pub struct GuestTopology {
    /// The ports, programmed.
    pub ports: Vec<(Sbdf, VirtualPort)>,
    /// The endpoints, in the order in which the branches name them.
    pub endpoints: Vec<PlacedEndpoint>,
}

/// Why devices cannot all be placed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum LayoutError {
    /// Too many branches for the root bus or slots for a switch.
    #[error("{count} {what}, but a PCI bus has room for {room}")]
    TooMany {
        /// What there is too much of.
        what: &'static str,
        /// How many there are.
        count: usize,
        /// How many fit.
        room: usize,
    },
    /// More than 256 buses.
    #[error("the devices need more than 256 PCI buses")]
    Buses,
    /// The BARs of a branch find no room.
    #[error(
        "{kind} BARs need {needed_bytes} bytes, aligned to {align_bytes}, and there is no room for them"
    )]
    Aperture {
        /// Which BARs.
        kind: &'static str,
        /// Their sum with bridge granularity, in bytes.
        needed_bytes: u64,
        /// The largest alignment, in bytes.
        align_bytes: u64,
    },
    /// A BAR must be at its bus address, and has none, or not one that a bridge of the guest can forward.
    #[error("BAR {bar} of the device at {sbdf} in the guest must be at its bus address: {why}")]
    Fixed {
        /// The device in the guest.
        sbdf: Sbdf,
        /// The BAR.
        bar: u8,
        /// What is wrong with that.
        why: &'static str,
    },
    /// Two windows that must be where they are overlap.
    #[error(
        "the windows of {a} and {b} in the guest must be at bus addresses that overlap: {first} and {second}"
    )]
    Overlap {
        /// A port in the guest.
        a: Sbdf,
        /// Its window.
        first: AddressRange<Gpa>,
        /// Another port, or the one above it.
        b: Sbdf,
        /// Its window.
        second: AddressRange<Gpa>,
    },
}

/// First device number on the root bus that a root port can have: 0 is the host bridge.
const FIRST_ROOT_PORT: u8 = 1;
const DEVICES_PER_BUS: usize = 32;

/// The windows that must be where they are, so that RAM can keep clear of them: those of branches with an endpoint that
/// is reached by bus address.
///
/// # Errors
/// As [`lay_out`].
pub fn fixed_windows(branches: &[Branch]) -> Result<Vec<AddressRange<Gpa>>, LayoutError> {
    let mut tree = Tree::default();
    tree.build(branches)?;
    tree.fix()?;
    let roots: Vec<usize> = tree.children(None).collect();
    let windows = roots.iter().filter_map(|root| tree.nodes.get(*root));
    Ok(windows.flat_map(|node| node.windows).flatten().collect())
}

/// Lays out the topology.
///
/// # Errors
/// [`LayoutError`] if there are not enough device numbers, buses or addresses, or if what must be at a certain address
/// cannot be there.
pub fn lay_out(branches: &[Branch], apertures: &Apertures) -> Result<GuestTopology, LayoutError> {
    let mut tree = Tree::default();
    tree.build(branches)?;
    tree.fix()?;
    let roots: Vec<usize> = tree.children(None).collect();
    for (kind, ranges) in [
        (Kind::Memory, &apertures.memory),
        (Kind::Prefetchable, &apertures.prefetchable),
    ] {
        let fixed = roots.iter().filter_map(|root| tree.nodes.get(*root));
        let mut taken: Vec<_> = fixed.flat_map(|node| node.windows).flatten().collect();
        let mut needs: Vec<(usize, Extent)> = roots
            .iter()
            .filter(|root| !tree.is_fixed(**root))
            .map(|root| (*root, tree.need(*root, kind)))
            .filter(|(_, need)| need.bytes > 0)
            .collect();
        needs.sort_by_key(|(_, need)| std::cmp::Reverse(need.align_bytes));
        for (root, need) in needs {
            let range = first_fit(need, ranges, &taken).ok_or(LayoutError::Aperture {
                kind: kind.name(),
                needed_bytes: need.bytes,
                align_bytes: need.align_bytes,
            })?;
            taken.push(range);
            tree.place(root, kind, range.start().value());
        }
    }
    Ok(tree.finish())
}

/// The lowest place for `need` in `apertures` that overlaps nothing in `taken`.
fn first_fit(
    need: Extent,
    apertures: &[AddressRange<Gpa>],
    taken: &[AddressRange<Gpa>],
) -> Option<AddressRange<Gpa>> {
    let starts = apertures
        .iter()
        .chain(taken)
        .flat_map(|r| [r.start(), r.end()]);
    let mut candidates: Vec<u64> = starts
        .filter_map(|start| start.value().checked_next_multiple_of(need.align_bytes))
        .collect();
    candidates.sort_unstable();
    candidates
        .into_iter()
        .filter_map(|start| AddressRange::new(Gpa::new(start), need.bytes))
        .filter(|range| apertures.iter().any(|aperture| aperture.contains(range)))
        .find(|range| taken.iter().all(|other| range.intersect(other).is_none()))
}

/// The two kinds of bridge window.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Memory = 0,
    Prefetchable = 1,
}

impl Kind {
    fn of(bar: &BarInfo) -> Self {
        if bar.is_64bit && bar.prefetchable {
            Self::Prefetchable
        } else {
            Self::Memory
        }
    }

    /// The window that forwards an address.
    fn at(gpa: Gpa) -> Self {
        if gpa.value() < 1 << 32 {
            Self::Memory
        } else {
            Self::Prefetchable
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Memory => "32-bit or not prefetchable",
            Self::Prefetchable => "64-bit prefetchable",
        }
    }
}

/// A need for addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Extent {
    bytes: u64,
    align_bytes: u64,
}

/// Offsets for items one after the other, those with the largest alignment first, and what all need.
fn pack(items: &[Extent]) -> (Vec<u64>, Extent) {
    let mut order: Vec<usize> = (0..items.len()).collect();
    order.sort_by_key(|at| std::cmp::Reverse(items[*at].align_bytes));
    let mut offsets = vec![0; items.len()];
    let mut total = Extent {
        bytes: 0,
        align_bytes: 1,
    };
    for at in order {
        let item = items[at];
        let offset = total.bytes.next_multiple_of(item.align_bytes);
        offsets[at] = offset;
        total.bytes = offset.saturating_add(item.bytes);
        total.align_bytes = total.align_bytes.max(item.align_bytes);
    }
    (offsets, total)
}

enum Body {
    Port(Box<VirtualPort>),
    Endpoint {
        bars: Vec<(BarInfo, Gpa)>,
        /// Its BARs are where they must be.
        fixed: bool,
    },
}

struct Node {
    parent: Option<usize>,
    sbdf: Sbdf,
    body: Body,
    windows: [Option<AddressRange<Gpa>>; 2],
}

/// The functions in the order of a depth-first walk, which is that of bus numbers.
#[derive(Default)]
struct Tree {
    nodes: Vec<Node>,
    last_bus: u8,
}

impl Tree {
    fn build(&mut self, branches: &[Branch]) -> Result<(), LayoutError> {
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

    fn children(&self, parent: Option<usize>) -> impl Iterator<Item = usize> {
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
    fn is_fixed(&self, at: usize) -> bool {
        match self.nodes.get(at).map(|node| &node.body) {
            Some(Body::Endpoint { fixed, .. }) => *fixed,
            Some(Body::Port(_)) => self.children(Some(at)).any(|child| self.is_fixed(child)),
            None => false,
        }
    }

    /// Gives the ports above fixed endpoints the windows that these need.
    fn fix(&mut self) -> Result<(), LayoutError> {
        // Children come after their parents, so that going backwards each port finds its children done.
        for at in (0..self.nodes.len()).rev() {
            if let Body::Port(_) = self.nodes[at].body {
                for kind in [Kind::Memory, Kind::Prefetchable] {
                    let below: Vec<_> = self
                        .children(Some(at))
                        .flat_map(|c| self.fixed_ranges(c, kind))
                        .collect();
                    self.nodes[at].windows[kind as usize] = hull(&below);
                }
                self.check_apart(Some(at))?;
            }
        }
        self.check_apart(None)
    }

    /// The ranges that a node takes of its parent's window of one kind, for it is fixed.
    fn fixed_ranges(&self, at: usize, kind: Kind) -> Vec<AddressRange<Gpa>> {
        match &self.nodes[at].body {
            Body::Port(_) => self.nodes[at].windows[kind as usize].into_iter().collect(),
            Body::Endpoint { fixed: false, .. } => Vec::new(),
            Body::Endpoint { bars, .. } => bars
                .iter()
                .filter(|(_, gpa)| Kind::at(*gpa) == kind)
                .filter_map(|(bar, gpa)| AddressRange::new(*gpa, bar.size_bytes))
                .collect(),
        }
    }

    /// Windows of ports on one bus must not overlap, whatever their kind.
    fn check_apart(&self, parent: Option<usize>) -> Result<(), LayoutError> {
        let windows: Vec<_> = self
            .children(parent)
            .flat_map(|child| {
                let node = &self.nodes[child];
                node.windows
                    .iter()
                    .flatten()
                    .map(|window| (node.sbdf, *window))
            })
            .collect();
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

    /// What `at` and everything below it needs.
    fn need(&self, at: usize, kind: Kind) -> Extent {
        let (_, mut total) = pack(&self.items(at, kind));
        if let Body::Port(_) = self.nodes[at].body
            && total.bytes > 0
        {
            total.bytes = total.bytes.next_multiple_of(WINDOW_ALIGN);
            total.align_bytes = total.align_bytes.max(WINDOW_ALIGN);
        }
        total
    }

    fn place(&mut self, at: usize, kind: Kind, base: u64) {
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

    fn finish(self) -> GuestTopology {
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

fn check_room(what: &'static str, count: usize, room: usize) -> Result<(), LayoutError> {
    if count > room {
        return Err(LayoutError::TooMany { what, count, room });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINK: Link = Link { speed: 4, width: 4 };

    fn apertures() -> Apertures {
        let range = |start, len| AddressRange::new(Gpa::new(start), len).unwrap();
        Apertures {
            memory: vec![range(0xc000_0000, 512 << 20)],
            prefetchable: vec![range(0x2_0000_0000, 256 << 30)],
        }
    }

    fn bar(index: u8, size_bytes: u64, prefetchable: bool) -> BarInfo {
        BarInfo {
            index,
            size_bytes,
            is_64bit: prefetchable,
            prefetchable,
        }
    }

    fn endpoint(bars: &[BarInfo]) -> Endpoint {
        Endpoint {
            bars: bars.to_vec(),
            at: Vec::new(),
            link: LINK,
        }
    }

    fn gpu() -> Endpoint {
        endpoint(&[
            bar(0, 16 << 20, false),
            bar(1, 64 << 30, true),
            bar(3, 32 << 20, true),
        ])
    }

    fn nvme() -> Endpoint {
        endpoint(&[bar(0, 16 << 10, false), bar(4, 16 << 20, true)])
    }

    fn addresses(topology: &GuestTopology) -> Vec<String> {
        let ports = topology.ports.iter().map(|(sbdf, _)| sbdf);
        let endpoints = topology.endpoints.iter().map(|e| &e.sbdf);
        let mut all: Vec<_> = ports.chain(endpoints).map(Sbdf::to_string).collect();
        all.sort();
        all
    }

    #[test]
    fn a_domain_is_a_switch_and_others_have_root_ports() {
        let branches = [Branch::Switch(vec![nvme(), nvme()]), Branch::Device(nvme())];
        let topology = lay_out(&branches, &apertures()).unwrap();
        let expected = [
            "0000:00:01.0",
            "0000:00:02.0",
            "0000:01:00.0",
            "0000:02:00.0",
            "0000:02:01.0",
            "0000:03:00.0",
            "0000:04:00.0",
            "0000:05:00.0",
        ];
        assert_eq!(addresses(&topology), expected);
        let (_, root) = &topology.ports[0];
        let buses = root.buses();
        assert_eq!(
            (buses.primary, buses.secondary, buses.subordinate),
            (0, 1, 4)
        );
    }

    #[test]
    fn every_bar_is_aligned_inside_all_windows_above_and_apart_from_others() {
        let branches = [
            Branch::Switch(vec![gpu(), nvme(), gpu()]),
            Branch::Device(nvme()),
            Branch::Device(endpoint(&[])),
        ];
        let topology = lay_out(&branches, &apertures()).unwrap();
        let mut used: Vec<AddressRange<Gpa>> = Vec::new();
        for endpoint in &topology.endpoints {
            for (bar, gpa) in &endpoint.bars {
                assert!(
                    gpa.value().is_multiple_of(bar.size_bytes),
                    "{bar:?} at {gpa}"
                );
                let range = AddressRange::new(*gpa, bar.size_bytes).unwrap();
                let bus = endpoint.sbdf.bus();
                for (sbdf, port) in &topology.ports {
                    let buses = port.buses();
                    if (buses.secondary..=buses.subordinate).contains(&bus) {
                        assert!(
                            port.windows().any(|window| window.contains(&range)),
                            "{bar:?} at {gpa} is not behind {sbdf}"
                        );
                    }
                }
                let apart =
                    |r: &AddressRange<Gpa>| r.end() <= range.start() || range.end() <= r.start();
                assert!(used.iter().all(apart));
                used.push(range);
            }
        }
        assert_eq!(used.len(), 10);
    }

    #[test]
    fn an_endpoint_without_bars_needs_no_window() {
        let topology = lay_out(&[Branch::Device(endpoint(&[]))], &apertures()).unwrap();
        assert_eq!(topology.ports[0].1.windows().count(), 0);
    }

    #[test]
    fn bars_that_do_not_fit_are_an_error_with_their_size() {
        let huge = endpoint(&[bar(0, 1 << 30, false)]);
        let error = lay_out(&[Branch::Device(huge)], &apertures()).unwrap_err();
        assert!(error.to_string().contains("1073741824"), "{error}");
    }

    #[test]
    fn what_does_not_fit_into_one_aperture_goes_into_the_next() {
        let range = |start, len| AddressRange::new(Gpa::new(start), len).unwrap();
        let split = Apertures {
            memory: vec![range(0xc000_0000, 1 << 20), range(0xd000_0000, 4 << 20)],
            prefetchable: apertures().prefetchable,
        };
        let branches = [Branch::Device(nvme()), Branch::Device(nvme())];
        let topology = lay_out(&branches, &split).unwrap();
        let firsts: Vec<_> = topology
            .endpoints
            .iter()
            .map(|e| e.bars[0].1.value())
            .collect();
        assert_eq!(firsts, [0xc000_0000, 0xd000_0000]);
    }

    fn fixed(at: &[(u8, u64)], endpoint: Endpoint) -> Endpoint {
        Endpoint {
            at: at.iter().map(|(bar, gpa)| (*bar, Gpa::new(*gpa))).collect(),
            ..endpoint
        }
    }

    #[test]
    fn peers_that_a_switch_reaches_by_bus_address_are_at_it() {
        let branches = [
            Branch::Switch(vec![
                fixed(&[(0, 0xfe80_0000), (4, 0xc0_2000_0000)], nvme()),
                fixed(&[(0, 0xfe60_0000), (4, 0xc0_0000_0000)], nvme()),
            ]),
            Branch::Device(nvme()),
        ];
        let windows: Vec<_> = fixed_windows(&branches)
            .unwrap()
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            windows,
            ["0xfe600000..0xfe900000", "0xc000000000..0xc021000000"]
        );
        let topology = lay_out(&branches, &apertures()).unwrap();
        let at: Vec<_> = topology
            .endpoints
            .iter()
            .map(|e| (e.bars[0].1.value(), e.bars[1].1.value()))
            .collect();
        assert_eq!(
            at,
            [
                (0xfe80_0000, 0xc0_2000_0000),
                (0xfe60_0000, 0xc0_0000_0000),
                (0xc000_0000, 0x2_0000_0000)
            ]
        );
        for (sbdf, port) in &topology.ports {
            assert_eq!(port.windows().count(), 2, "{sbdf}");
        }
    }

    #[test]
    fn free_devices_keep_clear_of_fixed_windows() {
        let branches = [
            Branch::Device(fixed(&[(0, 0xc000_0000), (4, 0x2_0000_0000)], nvme())),
            Branch::Device(nvme()),
        ];
        let topology = lay_out(&branches, &apertures()).unwrap();
        let free = &topology.endpoints[1].bars;
        assert_eq!(
            (free[0].1.value(), free[1].1.value()),
            (0xc010_0000, 0x2_0100_0000)
        );
    }

    #[test]
    fn fixed_windows_that_overlap_are_refused_by_name() {
        let branches = [Branch::Switch(vec![
            fixed(&[(0, 0xfe80_0000), (4, 0xc0_0000_0000)], nvme()),
            fixed(&[(0, 0xfe80_4000), (4, 0xc0_2000_0000)], nvme()),
        ])];
        let error = lay_out(&branches, &apertures()).unwrap_err().to_string();
        assert!(
            error.contains("0000:02:00.0") && error.contains("0000:02:01.0"),
            "{error}"
        );
    }

    #[test]
    fn bars_that_cannot_be_at_their_bus_address_are_refused() {
        for (at, why) in [
            (vec![(0, 0xfe80_0000)], "assigned none"),
            (
                vec![(0, 0xfe80_1000), (4, 0xc0_0000_0000)],
                "multiple of its size",
            ),
            (
                vec![(0, 0x1_0000_0000), (4, 0xc0_0000_0000)],
                "not prefetchable",
            ),
        ] {
            let error = lay_out(&[Branch::Device(fixed(&at, nvme()))], &apertures()).unwrap_err();
            assert!(error.to_string().contains(why), "{error}");
        }
    }

    #[test]
    fn too_many_branches_and_slots_are_counted() {
        let many = vec![Branch::Device(nvme()); 32];
        assert!(matches!(
            lay_out(&many, &apertures()),
            Err(LayoutError::TooMany {
                count: 32,
                room: 31,
                ..
            })
        ));
        let wide = [Branch::Switch(vec![nvme(); 33])];
        assert!(matches!(
            lay_out(&wide, &apertures()),
            Err(LayoutError::TooMany {
                count: 33,
                room: 32,
                ..
            })
        ));
    }

    #[test]
    fn nothing_is_a_topology_too() {
        assert!(lay_out(&[], &apertures()).unwrap().endpoints.is_empty());
    }
}
