//! Selection and placement of the functions in a picture.

use iommu_group::{Bar, Function, PortType, RootBus, Topology};

use crate::names::Names;

/// Up to this number, the virtual functions of a physical function have their own boxes.
const FEW: usize = 4;

pub(super) const ROW: i32 = 44;
pub(super) const BOX_HEIGHT: i32 = 34;
/// Width of a port whose name has no segment, and of one whose name has.
const PORT_WIDTH: i32 = 96;
const PORT_WIDTH_WITH_SEGMENT: i32 = 136;
/// Distance between a port and the other end of its link, with space for the link's speed.
const LINK: i32 = 76;
/// Distance between the ports of a switch.
const INSIDE: i32 = 30;
pub(super) const MARGIN: i32 = 24;
pub(super) const ROOT_WIDTH: i32 = 108;
const TITLE: i32 = 56;
/// Space above the first row of a panel, for its name.
const PANEL_HEAD: i32 = 30;
const PANEL_GAP: i32 = 16;

/// All nodes with their positions.
pub(super) struct Layout<'a> {
    pub(super) panels: Vec<Panel<'a>>,
    pub(super) port_width: i32,
    /// Left edge of the endpoints.
    pub(super) endpoints_x: i32,
    /// Bottom edge of the last panel.
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

/// A function, or several virtual functions that are drawn as one.
pub(super) struct Node<'a> {
    pub(super) function: &'a Function,
    /// Number of virtual functions that the node represents, if it does.
    pub(super) virtual_functions: Option<usize>,
    pub(super) x: i32,
    pub(super) y: i32,
    pub(super) children: Vec<Node<'a>>,
}

impl<'a> Node<'a> {
    pub(super) fn is_endpoint(&self) -> bool {
        !self.function.is_bridge()
    }

    /// Visits this node and all nodes below, depth first.
    pub(super) fn walk(&self, visit: &mut impl FnMut(&Node<'a>)) {
        visit(self);
        for child in &self.children {
            child.walk(visit);
        }
    }
}

impl<'a> Layout<'a> {
    /// Selects and places the functions; with `all`, every function.
    pub(super) fn new(topology: &'a Topology, names: Names, all: bool) -> Self {
        let builder = Builder {
            topology,
            all,
            port_width: if names.have_segments() {
                PORT_WIDTH_WITH_SEGMENT
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

    /// Visits all nodes, from top to bottom.
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

/// Selects the functions to draw.
struct Builder<'a> {
    topology: &'a Topology,
    all: bool,
    port_width: i32,
}

impl<'a> Builder<'a> {
    /// The siblings to draw, with the functions below them.
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

    /// Like [`Builder::nodes`], with many virtual functions combined into one node.
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

/// Assigns rows: one to each endpoint, and to a port the middle of the rows below it.
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
