//! What is drawn, and where.

use iommu_group::{Bar, Function, PortType, RootBus, Topology};

use crate::names::Names;

/// As many virtual functions of one physical one get boxes of their own.
const FEW: usize = 4;

pub(super) const ROW: i32 = 44;
pub(super) const BOX_HEIGHT: i32 = 34;
/// A port whose name has no domain, and one whose name has.
const PORT_WIDTH: i32 = 96;
const PORT_WIDTH_WITH_DOMAIN: i32 = 136;
/// Between a port and what is at the other end of its link: room for the link's speed.
const LINK: i32 = 76;
/// Between the ports of a switch.
const INSIDE: i32 = 30;
pub(super) const MARGIN: i32 = 24;
pub(super) const ROOT_WIDTH: i32 = 108;
const TITLE: i32 = 56;
/// Above the first row of a panel, for its name.
const PANEL_HEAD: i32 = 30;
const PANEL_GAP: i32 = 16;

/// Everything with its place.
pub(super) struct Layout<'a> {
    pub(super) panels: Vec<Panel<'a>>,
    pub(super) port_width: i32,
    /// Left edge of the endpoints.
    pub(super) endpoints_x: i32,
    /// Below the last panel.
    pub(super) bottom: i32,
}

/// The root buses of one NUMA node.
pub(super) struct Panel<'a> {
    pub(super) node: Option<u32>,
    pub(super) top: i32,
    pub(super) bottom: i32,
    pub(super) roots: Vec<Root<'a>>,
}

pub(super) struct Root<'a> {
    pub(super) bus: &'a RootBus,
    pub(super) y: i32,
    pub(super) children: Vec<Node<'a>>,
}

/// A function, or many virtual ones that are drawn as one.
pub(super) struct Node<'a> {
    pub(super) function: &'a Function,
    /// How many virtual functions it stands for, if it does.
    pub(super) virtual_functions: Option<usize>,
    pub(super) x: i32,
    pub(super) y: i32,
    pub(super) children: Vec<Node<'a>>,
}

impl<'a> Node<'a> {
    pub(super) fn is_endpoint(&self) -> bool {
        !self.function.is_bridge()
    }

    /// This node and all below, depth first.
    pub(super) fn walk(&self, visit: &mut impl FnMut(&Node<'a>)) {
        visit(self);
        for child in &self.children {
            child.walk(visit);
        }
    }
}

impl<'a> Layout<'a> {
    /// Places everything worth drawing, or with `all` everything.
    pub(super) fn new(topology: &'a Topology, names: Names, all: bool) -> Self {
        let builder = Builder {
            topology,
            all,
            port_width: if names.have_domains() {
                PORT_WIDTH_WITH_DOMAIN
            } else {
                PORT_WIDTH
            },
        };
        let mut trees: Vec<(Option<u32>, &RootBus, Vec<Node<'_>>)> = Vec::new();
        for bus in topology.root_buses() {
            let functions: Vec<&Function> = topology.on_root_bus(bus).collect();
            let node = functions.iter().find_map(|f| f.numa_node());
            let left = MARGIN + 12 + ROOT_WIDTH + INSIDE;
            let children = builder.nodes(&functions, left);
            if !children.is_empty() {
                trees.push((node, bus, children));
            }
        }
        trees.sort_by_key(|(node, ..)| *node);
        let mut endpoints_x = 0;
        for (_, _, children) in &trees {
            for child in children {
                child.walk(&mut |node| {
                    if node.is_endpoint() {
                        endpoints_x = endpoints_x.max(node.x);
                    }
                });
            }
        }
        let mut layout = Self {
            panels: Vec::new(),
            port_width: builder.port_width,
            endpoints_x,
            bottom: TITLE,
        };
        for (node, bus, children) in trees {
            layout.add(node, bus, children);
        }
        layout
    }

    fn add(&mut self, node: Option<u32>, bus: &'a RootBus, mut children: Vec<Node<'a>>) {
        if self.panels.last().is_none_or(|panel| panel.node != node) {
            let top = self.bottom + PANEL_GAP;
            let head = if node.is_some() { PANEL_HEAD } else { 12 };
            self.panels.push(Panel {
                node,
                top,
                bottom: top + head,
                roots: Vec::new(),
            });
        }
        let endpoints_x = self.endpoints_x;
        let Some(panel) = self.panels.last_mut() else {
            return;
        };
        let mut row = panel.bottom + ROW / 2;
        for child in &mut children {
            place(child, &mut row, endpoints_x);
        }
        let first = children.first().map_or(row, |child| child.y);
        let last = children.last().map_or(row, |child| child.y);
        panel.roots.push(Root {
            bus,
            y: first.midpoint(last),
            children,
        });
        panel.bottom = row - ROW / 2 + 10;
        self.bottom = panel.bottom;
    }

    /// All nodes, from top to bottom.
    pub(super) fn walk(&self, visit: &mut impl FnMut(&Node<'a>)) {
        for panel in &self.panels {
            for root in &panel.roots {
                for child in &root.children {
                    child.walk(visit);
                }
            }
        }
    }
}

/// Finds what is worth drawing.
struct Builder<'a> {
    topology: &'a Topology,
    all: bool,
    port_width: i32,
}

impl<'a> Builder<'a> {
    /// The functions worth drawing among siblings, with what is below them.
    fn nodes(&self, functions: &[&'a Function], x: i32) -> Vec<Node<'a>> {
        let mut nodes = Vec::new();
        for function in functions {
            let below: Vec<&Function> = self.topology.children(function.sbdf()).collect();
            let gap = if function.port_type() == PortType::SwitchUpstream {
                INSIDE
            } else {
                LINK
            };
            let children = self.nodes_below(&below, x + self.port_width + gap);
            let worthwhile = if function.is_bridge() {
                !children.is_empty()
            } else {
                self.topology.bars(function).iter().any(Bar::is_memory)
            };
            if self.all || worthwhile {
                nodes.push(Node {
                    function,
                    virtual_functions: None,
                    x,
                    y: 0,
                    children,
                });
            }
        }
        nodes
    }

    /// Like [`Builder::nodes`], with many virtual functions taken together.
    fn nodes_below(&self, functions: &[&'a Function], x: i32) -> Vec<Node<'a>> {
        let (virtual_ones, real): (Vec<&Function>, Vec<&Function>) =
            functions.iter().copied().partition(|f| f.is_virtual());
        let mut below = self.nodes(&real, x);
        let mut rest = virtual_ones.as_slice();
        while let Some(first) = rest.first() {
            let same = |f: &&Function| f.physical_function() == first.physical_function();
            let count = rest.iter().take_while(|f| same(f)).count();
            let (these, others) = rest.split_at(count);
            rest = others;
            if count <= FEW {
                below.extend(self.nodes(these, x));
            } else {
                below.push(Node {
                    function: first,
                    virtual_functions: Some(count),
                    x,
                    y: 0,
                    children: Vec::new(),
                });
            }
        }
        below
    }
}

/// Gives every node its row: endpoints one each, ports the middle of what is below.
fn place(node: &mut Node<'_>, row: &mut i32, endpoints_x: i32) {
    if node.is_endpoint() {
        node.x = endpoints_x;
    }
    if node.children.is_empty() {
        node.y = *row;
        *row += ROW;
        return;
    }
    for child in &mut node.children {
        place(child, row, endpoints_x);
    }
    let first = node.children.first().map_or(*row, |child| child.y);
    let last = node.children.last().map_or(*row, |child| child.y);
    node.y = first.midpoint(last);
}
