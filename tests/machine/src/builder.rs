//! Machines that are built function by function.

use iommu_group::Sbdf;
use serde_json::json;

use super::function::{BarKind, Function, Group, MIB};
use super::{Machine, Placed, PlacedBar};

/// A root bus of a machine.
#[derive(Debug, Clone, Copy)]
pub struct Root(usize);

/// A function of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Node(usize);

/// What a function is below.
#[derive(Debug, Clone, Copy)]
pub enum Parent {
    /// A root bus.
    Root(Root),
    /// A bridge.
    Port(Node),
}

impl From<Root> for Parent {
    fn from(root: Root) -> Self {
        Self::Root(root)
    }
}

impl From<Node> for Parent {
    fn from(node: Node) -> Self {
        Self::Port(node)
    }
}

#[derive(Debug, Clone, Copy)]
struct RootBus {
    domain: u32,
    bus: u8,
    numa: i32,
    behind: Option<Node>,
}

/// A machine that is built function by function.
#[derive(Debug, Default)]
pub struct Builder {
    roots: Vec<RootBus>,
    functions: Vec<(Parent, Function)>,
}

impl Builder {
    /// A machine without functions.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a root bus.
    pub fn root(&mut self, domain: u32, bus: u8, numa: i32) -> Root {
        self.roots.push(RootBus {
            domain,
            bus,
            numa,
            behind: None,
        });
        Root(self.roots.len() - 1)
    }

    /// A root bus that a function provides, as Intel's VMD does.
    pub fn root_behind(&mut self, domain: u32, bus: u8, behind: Node) -> Root {
        let root = self.root(domain, bus, 0);
        self.roots[root.0].behind = Some(behind);
        root
    }

    /// Adds a function.
    pub fn add(&mut self, parent: impl Into<Parent>, function: Function) -> Node {
        self.functions.push((parent.into(), function));
        Node(self.functions.len() - 1)
    }

    /// What is on each root bus, and below each function, in the order of device and function numbers.
    fn children(&self) -> (Vec<Vec<Node>>, Vec<Vec<Node>>) {
        let mut on_roots = vec![Vec::new(); self.roots.len()];
        let mut below = vec![Vec::new(); self.functions.len()];
        for (index, (parent, _)) in self.functions.iter().enumerate() {
            match parent {
                Parent::Root(root) => on_roots[root.0].push(Node(index)),
                Parent::Port(port) => below[port.0].push(Node(index)),
            }
        }
        for children in on_roots.iter_mut().chain(&mut below) {
            children.sort_by_key(|node| {
                let function = &self.functions[node.0].1;
                (function.device, function.number)
            });
        }
        (on_roots, below)
    }

    /// The machine, with its functions in the order in which Linux adds them. It has an Intel CPU and IOMMU.
    pub fn build(&self) -> Machine {
        let (on_roots, below) = self.children();
        let mut layout = Layout {
            builder: self,
            below: &below,
            placed: Vec::new(),
            dirs: vec![String::new(); self.functions.len()],
            groups: vec![None; self.functions.len()],
            next_group: 0,
        };
        for (index, root) in self.roots.iter().enumerate() {
            let above = root
                .behind
                .map_or_else(String::new, |node| format!("{}/", layout.dirs[node.0]));
            let dir = format!("{above}pci{:04x}:{:02x}", root.domain, root.bus);
            let mut cursor = Cursor {
                bus: root.bus,
                memory: 0x8000_0000 + 0x0400_0000 * index as u64,
                prefetch: 0x0380_0000_0000 + 0x0080_0000_0000 * index as u64,
            };
            layout.bus(&on_roots[index], *root, root.bus, &dir, &mut cursor);
        }
        let machine = Machine {
            functions: layout.placed,
            host: json!({ "kernel_release": "7.2.12-amd64", "iommu": "intel" }),
        };
        machine
            .arguments("root=/dev/vda1 intel_iommu=on iommu=pt")
            .cpu("GenuineIntel", 6)
    }
}

/// What has been handed out below a root bus.
struct Cursor {
    bus: u8,
    memory: u64,
    prefetch: u64,
}

fn align(value: u64, to: u64) -> u64 {
    value.next_multiple_of(to)
}

struct Layout<'a> {
    builder: &'a Builder,
    below: &'a [Vec<Node>],
    placed: Vec<Placed>,
    dirs: Vec<String>,
    groups: Vec<Option<u32>>,
    next_group: u32,
}

impl Layout<'_> {
    fn bus(&mut self, nodes: &[Node], root: RootBus, bus: u8, dir: &str, cursor: &mut Cursor) {
        let slots: Vec<usize> = nodes
            .iter()
            .map(|node| self.function(root, *node, nodes, bus, dir, cursor))
            .collect();
        for (node, slot) in nodes.iter().zip(slots) {
            if !self.builder.functions[node.0].1.kind.is_bridge() {
                continue;
            }
            cursor.bus += 1;
            let secondary = cursor.bus;
            cursor.memory = align(cursor.memory, MIB);
            cursor.prefetch = align(cursor.prefetch, MIB);
            let start = (cursor.memory, cursor.prefetch);
            let below = self.dirs[node.0].clone();
            self.bus(&self.below[node.0], root, secondary, &below, cursor);
            let used = |start: u64, end: &mut u64| {
                *end = align(*end, MIB);
                (*end > start).then_some((start, *end))
            };
            let window = used(start.0, &mut cursor.memory);
            let prefetch_window = used(start.1, &mut cursor.prefetch);
            let placed = &mut self.placed[slot];
            placed.buses = Some((secondary, cursor.bus));
            placed.window = window;
            placed.prefetch_window = prefetch_window;
        }
    }

    /// Puts one function, with its virtual ones, onto a bus; gives its place in `placed`.
    fn function(
        &mut self,
        root: RootBus,
        node: Node,
        siblings: &[Node],
        bus: u8,
        dir: &str,
        cursor: &mut Cursor,
    ) -> usize {
        let (parent, function) = &self.builder.functions[node.0];
        let functions = &self.builder.functions;
        let same_device = |other: &&Node| functions[other.0].1.device == function.device;
        let first = siblings.iter().find(same_device).copied().unwrap_or(node);
        let group = match function.group {
            Group::None => None,
            Group::OfPort => match parent {
                Parent::Port(port) => self.groups[port.0],
                Parent::Root(root) => self.builder.roots[root.0]
                    .behind
                    .and_then(|node| self.groups[node.0]),
            },
            Group::OfDevice if first != node => self.groups[first.0],
            Group::Own | Group::OfDevice => {
                self.next_group += 1;
                Some(self.next_group - 1)
            }
        };
        self.groups[node.0] = group;
        let bars = function
            .bars
            .iter()
            .map(|bar| {
                let from = match bar.kind {
                    BarKind::Prefetchable64 => &mut cursor.prefetch,
                    BarKind::Memory32 | BarKind::Memory64 => &mut cursor.memory,
                };
                let address = align(*from, bar.size);
                *from = address + bar.size;
                PlacedBar {
                    index: bar.index,
                    kind: bar.kind,
                    address,
                    size: bar.size,
                }
            })
            .collect();
        let devfn = function.device << 3 | function.number;
        let sbdf = Sbdf::from_devfn(root.domain, bus, devfn);
        let mut placed = Placed::new(function.clone(), sbdf, dir.to_owned());
        placed.numa = root.numa;
        placed.multifunction = siblings.iter().filter(same_device).count() > 1;
        placed.link_up =
            function.link.0 != 0 && (!function.kind.is_bridge() || !self.below[node.0].is_empty());
        placed.bars = bars;
        placed.group = group;
        self.dirs[node.0] = format!("{dir}/{sbdf}");
        self.placed.push(placed);
        let slot = self.placed.len() - 1;
        self.virtual_functions(slot, cursor);
        slot
    }

    fn virtual_functions(&mut self, slot: usize, cursor: &mut Cursor) {
        let physical = self.placed[slot].clone();
        let Some(all) = physical.function.virtual_functions else {
            return;
        };
        let start = align(cursor.prefetch, all.bar_size);
        cursor.prefetch = start + all.bar_size * u64::from(all.count);
        self.placed[slot].virtual_bars = Some(start);
        let rid = u16::from_be_bytes([physical.sbdf.bus(), physical.sbdf.devfn()]) + all.first;
        for index in 0..all.count {
            let [bus, devfn] = (rid + index * all.stride).to_be_bytes();
            cursor.bus = cursor.bus.max(bus);
            self.next_group += 1;
            let mut function = physical.function.clone();
            function.ids.1 = all.device;
            function.driver = all.driver.map(str::to_owned);
            function.virtual_functions = None;
            function.acs = None;
            let bar = PlacedBar {
                index: 0,
                kind: BarKind::Prefetchable64,
                address: start + all.bar_size * u64::from(index),
                size: all.bar_size,
            };
            self.placed.push(Placed {
                function,
                sbdf: Sbdf::from_devfn(physical.sbdf.domain(), bus, devfn),
                physical: Some(physical.sbdf),
                multifunction: false,
                bars: vec![bar],
                group: Some(self.next_group - 1),
                ..physical.clone()
            });
        }
    }
}
