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

/// The windows of the host bridge.
#[derive(Clone, Copy, Debug)]
pub struct Apertures {
    /// Below 4 GiB: BARs that are not both 64-bit and prefetchable.
    pub memory: AddressRange<Gpa>,
    /// For BARs that are 64-bit and prefetchable.
    pub prefetchable: AddressRange<Gpa>,
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
    /// The BARs need more than the aperture has.
    #[error(
        "{kind} BARs need {needed_bytes} bytes, aligned to {align_bytes}, but {aperture} is all there is for them"
    )]
    Aperture {
        /// Which BARs.
        kind: &'static str,
        /// Their sum with bridge granularity, in bytes.
        needed_bytes: u64,
        /// The largest alignment, in bytes.
        align_bytes: u64,
        /// What there is.
        aperture: AddressRange<Gpa>,
    },
}

/// First device number on the root bus that a root port can have: 0 is the host bridge.
const FIRST_ROOT_PORT: u8 = 1;
const DEVICES_PER_BUS: usize = 32;

/// Lays out the topology.
///
/// # Errors
/// [`LayoutError`] if there are not enough device numbers, buses or addresses.
pub fn lay_out(branches: &[Branch], apertures: Apertures) -> Result<GuestTopology, LayoutError> {
    let mut tree = Tree::default();
    tree.build(branches)?;
    for (kind, aperture) in [
        (Kind::Memory, apertures.memory),
        (Kind::Prefetchable, apertures.prefetchable),
    ] {
        let roots: Vec<usize> = tree.children(None).collect();
        let needs: Vec<Extent> = roots.iter().map(|node| tree.need(*node, kind)).collect();
        let (offsets, total) = pack(&needs);
        let base = aperture
            .start()
            .value()
            .checked_next_multiple_of(total.align_bytes);
        let fits = base.and_then(|base| AddressRange::new(Gpa::new(base), total.bytes.max(1)));
        let Some(range) = fits.filter(|range| aperture.contains(range)) else {
            return Err(LayoutError::Aperture {
                kind: kind.name(),
                needed_bytes: total.bytes,
                align_bytes: total.align_bytes,
                aperture,
            });
        };
        for (node, offset) in roots.into_iter().zip(offsets) {
            tree.place(node, kind, range.start().value() + offset);
        }
    }
    Ok(tree.finish())
}

/// The two kinds of bridge window.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Memory,
    Prefetchable,
}

impl Kind {
    fn of(bar: &BarInfo) -> Self {
        if bar.is_64bit && bar.prefetchable {
            Self::Prefetchable
        } else {
            Self::Memory
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
    Endpoint(Vec<(BarInfo, Gpa)>),
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
                    self.endpoint(root, endpoint);
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
                        self.endpoint(down, endpoint);
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

    fn endpoint(&mut self, parent: usize, endpoint: &Endpoint) {
        let bus = self.bus_below(Some(parent));
        let bars = endpoint.bars.iter().map(|bar| (*bar, Gpa::new(0)));
        self.push(Some(parent), bus, 0, Body::Endpoint(bars.collect()));
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
            Body::Endpoint(bars) => bars
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
                body: Body::Endpoint(bars),
                ..
            } => {
                for ((bar, gpa), offset) in bars.iter_mut().zip(offsets) {
                    if Kind::of(bar) == kind {
                        *gpa = Gpa::new(base + offset);
                    }
                }
            }
            Node { windows, .. } => {
                let which = usize::from(kind == Kind::Prefetchable);
                windows[which] = AddressRange::new(Gpa::new(base), need.bytes);
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
                Body::Endpoint(bars) => topology.endpoints.push(PlacedEndpoint {
                    sbdf: node.sbdf,
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

#[cfg(test)]
mod tests {
    use super::*;

    const LINK: Link = Link { speed: 4, width: 4 };

    fn apertures() -> Apertures {
        let range = |start, len| AddressRange::new(Gpa::new(start), len).unwrap();
        Apertures {
            memory: range(0xc000_0000, 512 << 20),
            prefetchable: range(0x2_0000_0000, 256 << 30),
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
        let topology = lay_out(&branches, apertures()).unwrap();
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
        let topology = lay_out(&branches, apertures()).unwrap();
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
        let topology = lay_out(&[Branch::Device(endpoint(&[]))], apertures()).unwrap();
        assert_eq!(topology.ports[0].1.windows().count(), 0);
    }

    #[test]
    fn bars_that_do_not_fit_are_an_error_with_both_sizes() {
        let huge = endpoint(&[bar(0, 1 << 30, false)]);
        let error = lay_out(&[Branch::Device(huge)], apertures()).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("1073741824") && text.contains("0xc0000000"),
            "{text}"
        );
    }

    #[test]
    fn too_many_branches_and_slots_are_counted() {
        let many = vec![Branch::Device(nvme()); 32];
        assert!(matches!(
            lay_out(&many, apertures()),
            Err(LayoutError::TooMany {
                count: 32,
                room: 31,
                ..
            })
        ));
        let wide = [Branch::Switch(vec![nvme(); 33])];
        assert!(matches!(
            lay_out(&wide, apertures()),
            Err(LayoutError::TooMany {
                count: 33,
                room: 32,
                ..
            })
        ));
    }

    #[test]
    fn nothing_is_a_topology_too() {
        assert!(lay_out(&[], apertures()).unwrap().endpoints.is_empty());
    }
}
