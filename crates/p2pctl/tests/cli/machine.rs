//! A machine, put together function by function, and written as the sysfs tree that Linux would show of it.
//!
//! Bus numbers, addresses and group numbers are handed out as firmware and Linux do; what is in whose group is said
//! by who describes the machine.

mod config;
pub(crate) mod function;
mod sysfs;

use function::{BarKind, Function, Group};

/// A root bus of a machine.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Root(usize);

/// A function of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Node(usize);

/// Where something hangs.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Parent {
    Root(Root),
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

/// The CPU of a machine.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) enum Cpu {
    #[default]
    Intel,
    Zen,
}

#[derive(Debug, Default)]
pub(crate) struct Machine {
    roots: Vec<RootBus>,
    functions: Vec<(Parent, Function)>,
    /// Whether only what an unprivileged reader sees is to be written.
    unprivileged: bool,
    cpu: Cpu,
}

/// A BAR that has an address.
#[derive(Debug, Clone, Copy)]
struct PlacedBar {
    index: u16,
    kind: BarKind,
    address: u64,
    size: u64,
}

/// A function that has its numbers.
#[derive(Debug, Clone)]
struct Placed {
    function: Function,
    domain: u32,
    bus: u8,
    devfn: u8,
    /// The directory of its parent, relative to `devices`.
    dir: String,
    numa: i32,
    multifunction: bool,
    link_up: bool,
    is_virtual: bool,
    physical: Option<String>,
    secondary: Option<u8>,
    subordinate: u8,
    bars: Vec<PlacedBar>,
    window: Option<(u64, u64)>,
    prefetch_window: Option<(u64, u64)>,
    first_virtual: u16,
    virtual_bars: Option<u64>,
    group: Option<u32>,
}

impl Placed {
    fn name(&self) -> String {
        format!(
            "{:04x}:{:02x}:{:02x}.{}",
            self.domain,
            self.bus,
            self.devfn >> 3,
            self.devfn & 7
        )
    }
}

impl Machine {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Shows only the first 64 bytes of each configuration space.
    pub(crate) fn unprivileged(mut self) -> Self {
        self.unprivileged = true;
        self
    }

    /// Says which CPU, and so which IOMMU, the machine has.
    pub(crate) fn cpu(mut self, cpu: Cpu) -> Self {
        self.cpu = cpu;
        self
    }

    pub(crate) fn root(&mut self, domain: u32, bus: u8, numa: i32) -> Root {
        self.roots.push(RootBus {
            domain,
            bus,
            numa,
            behind: None,
        });
        Root(self.roots.len() - 1)
    }

    /// A root bus that a function provides, as Intel's VMD does.
    pub(crate) fn root_behind(&mut self, domain: u32, bus: u8, behind: Node) -> Root {
        let root = self.root(domain, bus, 0);
        self.roots[root.0].behind = Some(behind);
        root
    }

    pub(crate) fn add(&mut self, parent: impl Into<Parent>, function: Function) -> Node {
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

    /// Everything in place, in the order in which Linux adds it.
    fn place(&self) -> Vec<Placed> {
        let (on_roots, below) = self.children();
        let mut layout = Layout {
            machine: self,
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
        layout.placed
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

const MIB: u64 = function::MIB;

struct Layout<'a> {
    machine: &'a Machine,
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
            if !self.machine.functions[node.0].1.kind.is_bridge() {
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
            placed.secondary = Some(secondary);
            placed.subordinate = cursor.bus;
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
        let (parent, function) = &self.machine.functions[node.0];
        let functions = &self.machine.functions;
        let same_device = |other: &&Node| functions[other.0].1.device == function.device;
        let first = siblings.iter().find(same_device).copied().unwrap_or(node);
        let group = match function.group {
            Group::None => None,
            Group::OfPort => match parent {
                Parent::Port(port) => self.groups[port.0],
                Parent::Root(root) => self.machine.roots[root.0]
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
        let placed = Placed {
            function: function.clone(),
            domain: root.domain,
            bus,
            devfn: function.device << 3 | function.number,
            dir: dir.to_owned(),
            numa: root.numa,
            multifunction: siblings.iter().filter(same_device).count() > 1,
            link_up: function.link.0 != 0
                && (!function.kind.is_bridge() || !self.below[node.0].is_empty()),
            is_virtual: false,
            physical: None,
            secondary: None,
            subordinate: 0,
            bars,
            window: None,
            prefetch_window: None,
            first_virtual: 2,
            virtual_bars: None,
            group,
        };
        self.dirs[node.0] = format!("{dir}/{}", placed.name());
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
        let rid = u16::from_be_bytes([physical.bus, physical.devfn]) + physical.first_virtual;
        for index in 0..all.count {
            let [bus, devfn] = (rid + index).to_be_bytes();
            cursor.bus = cursor.bus.max(bus);
            self.next_group += 1;
            let mut function = physical.function.clone();
            function.ids.1 = all.device;
            function.driver = all.driver;
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
                bus,
                devfn,
                is_virtual: true,
                physical: Some(physical.name()),
                multifunction: false,
                bars: vec![bar],
                group: Some(self.next_group - 1),
                ..physical.clone()
            });
        }
    }
}
