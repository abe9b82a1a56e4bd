//! Renders a layout as SVG.

use std::collections::BTreeMap;

use iommu_group::{GroupId, PortType, Topology};

use super::layout::{BOX_HEIGHT, Layout, MARGIN, Node, Panel, ROOT_WIDTH, ROW, Root};
use super::palette::{self, Pair};
use super::routes::Routes;
use super::svg::{Font, Rect, Svg};
use crate::command::matrix::Matrix;
use crate::describe;
use crate::names::Names;
use crate::show::{Line, Tone};

/// Contents of a picture.
pub(crate) struct Request<'a> {
    pub(crate) topology: &'a Topology,
    pub(crate) names: Names,
    pub(crate) title: &'a str,
    /// Whether to draw functions without memory and ports without devices below them as well.
    pub(crate) all: bool,
    /// Verdicts to show beside the devices.
    pub(crate) matrix: &'a Matrix,
    /// Warnings to show.
    pub(crate) warnings: &'a [String],
}

/// Width of a 12-pixel character in pixels, slightly overestimated.
const CHARACTER: i32 = 8;
const SMALL_CHARACTER: i32 = 6;
/// Line height of the legend.
pub(super) const LEGEND_STEP: i32 = 20;

/// Draws a machine.
pub(crate) fn draw(request: &Request<'_>) -> String {
    let layout = Layout::new(request.topology, request.names, request.all);
    let mut picture = Picture {
        svg: Svg::new(),
        topology: request.topology,
        names: request.names,
        groups: group_colours(&layout),
        port_width: layout.port_width,
        endpoint_width: endpoint_width(&layout, request),
    };
    let right = layout.endpoints_x + picture.endpoint_width + 12;
    let routes = Routes::place(&layout, request, right + MARGIN);
    let width = (routes.right() + MARGIN).max(760);
    picture.svg.text(
        MARGIN,
        34,
        Font::new(19, palette::INK).bold(),
        request.title,
    );
    for panel in &layout.panels {
        picture.panel(panel, right);
    }
    routes.draw(&mut picture.svg);
    let mut bottom = layout.bottom + 34;
    let columns = usize::try_from((width - 2 * MARGIN) / CHARACTER).unwrap_or(0);
    for warning in request.warnings {
        let font = Font::new(12, palette::ink(Tone::Bad)).bold();
        for part in Line::from(warning.as_str()).wrap(columns) {
            picture.svg.text(MARGIN, bottom, font, &part.to_string());
            bottom += LEGEND_STEP;
        }
    }
    bottom = picture.legend(bottom);
    bottom = routes.legend(&mut picture.svg, bottom);
    picture.svg.finish(width, bottom + 10, request.title)
}

struct Picture<'a> {
    svg: Svg,
    topology: &'a Topology,
    names: Names,
    groups: BTreeMap<GroupId, Pair>,
    port_width: i32,
    endpoint_width: i32,
}

/// A colour for each group with several drawn functions.
fn group_colours(layout: &Layout<'_>) -> BTreeMap<GroupId, Pair> {
    let mut sizes: BTreeMap<GroupId, usize> = BTreeMap::new();
    layout.walk(&mut |node| {
        if let Some(group) = node.function.group() {
            *sizes.entry(group).or_default() += 1;
        }
    });
    sizes
        .into_iter()
        .filter(|(_, size)| *size > 1)
        .enumerate()
        .map(|(index, (group, _))| (group, palette::group(index)))
        .collect()
}

fn endpoint_width(layout: &Layout<'_>, request: &Request<'_>) -> i32 {
    let mut widest = 0;
    layout.walk(&mut |node| {
        if node.is_endpoint() {
            let (first, second) = endpoint_words(request.topology, request.names, node);
            // Space for the group at the end of the first line.
            widest = widest.max((length(&first) + 7) * CHARACTER);
            widest = widest.max(length(&second) * SMALL_CHARACTER);
        }
    });
    (widest + 20).clamp(180, 420)
}

fn length(text: &str) -> i32 {
    i32::try_from(text.chars().count()).unwrap_or(0)
}

/// The two lines of text of an endpoint.
fn endpoint_words(topology: &Topology, names: Names, node: &Node<'_>) -> (String, String) {
    let function = node.function;
    let name = names.of(function.sbdf());
    if let Some(count) = node.virtual_functions {
        return (
            format!("{count} VFs {}", function.ids()),
            format!("from {name} · {}", function.driver().unwrap_or("no driver")),
        );
    }
    let mut second = vec![function.driver().unwrap_or("no driver").to_owned()];
    second.extend(describe::remarks(topology, function));
    (
        format!("{name}  {}", describe::what(function)),
        second.join(" · "),
    )
}

impl Picture<'_> {
    fn panel(&mut self, panel: &Panel<'_>, right: i32) {
        self.svg.rect(Rect {
            x: MARGIN,
            y: panel.top,
            width: right - MARGIN,
            height: panel.bottom - panel.top,
            radius: 8,
            fill: palette::PANEL,
            stroke: palette::PANEL_EDGE,
        });
        if let Some(node) = panel.node {
            let font = Font::new(12, palette::FAINT).bold();
            self.svg.text(
                MARGIN + 12,
                panel.top + 20,
                font,
                &format!("NUMA node {node}"),
            );
        }
        for root in &panel.roots {
            self.root(root);
        }
    }

    fn root(&mut self, root: &Root<'_>) {
        let x = MARGIN + 12;
        let edge = x + ROOT_WIDTH;
        for child in &root.children {
            self.connect(edge, root.y, child, 1.2);
        }
        self.svg.rect(Rect {
            x,
            y: root.y - BOX_HEIGHT / 2,
            width: ROOT_WIDTH,
            height: BOX_HEIGHT,
            radius: BOX_HEIGHT / 2,
            fill: "#ffffff",
            stroke: palette::LINE,
        });
        let centre = x + ROOT_WIDTH / 2;
        let font = Font::new(12, palette::INK).bold().middle();
        let name = root.bus.to_string();
        match root.bus.behind {
            None => self.svg.text(centre, root.y + 4, font, &name),
            Some(behind) => {
                self.svg.text(centre, root.y - 2, font, &name);
                let font = Font::new(9, palette::FAINT).middle();
                let text = format!("behind {}", self.names.of(behind));
                self.svg.text(centre, root.y + 11, font, &text);
            }
        }
        for child in &root.children {
            self.node(child);
        }
    }

    /// A stepped line from a box to a node at its right.
    fn connect(&mut self, from_x: i32, from_y: i32, node: &Node<'_>, width: f32) {
        let bend = from_x + 12;
        let points = [
            (from_x, from_y),
            (bend, from_y),
            (bend, node.y),
            (node.x, node.y),
        ];
        self.svg.path(&points, width, palette::LINE);
    }

    fn node(&mut self, node: &Node<'_>) {
        if node.function.port_type() == PortType::SwitchUpstream {
            self.switch(node);
        }
        for child in &node.children {
            let link = child.function.config().express.and_then(|e| e.link);
            let has_link = node.function.port_type().is_downstream() && node.children.len() == 1;
            let lanes = link.filter(|_| has_link).map_or(0, |link| link.lanes);
            let width = match lanes {
                0..=1 => 1.2,
                2..=4 => 2.0,
                5..=8 => 3.0,
                _ => 4.0,
            };
            self.connect(node.x + self.port_width, node.y, child, width);
            if has_link && child.virtual_functions.is_none() {
                let text = describe::link(self.topology, child.function).to_string();
                let x = node.x + self.port_width + 6;
                self.svg
                    .text(x, child.y - 6, Font::new(10, palette::FAINT), &text);
            }
        }
        if node.is_endpoint() {
            self.endpoint(node);
        } else {
            self.port(node);
        }
        for child in &node.children {
            self.node(child);
        }
    }

    /// The frame around a switch.
    fn switch(&mut self, up: &Node<'_>) {
        let ports = up.children.iter().filter(|c| !c.is_endpoint());
        let right = ports.map(|c| c.x).max().unwrap_or(up.x) + self.port_width + 8;
        let (first, last) = (
            up.children.first().map_or(up.y, |c| c.y).min(up.y),
            up.children.last().map_or(up.y, |c| c.y).max(up.y),
        );
        self.svg.rect(Rect {
            x: up.x - 8,
            y: first - BOX_HEIGHT / 2 - 4,
            width: right - up.x + 8,
            height: last - first + BOX_HEIGHT + 8,
            radius: 8,
            fill: palette::SWITCH,
            stroke: palette::SWITCH_EDGE,
        });
        // With two rows there is no space above the upstream port.
        if last - first > ROW {
            let font = Font::new(10, palette::FAINT);
            let y = first - BOX_HEIGHT / 2 + 10;
            self.svg.text(up.x - 2, y, font, "switch");
            self.svg
                .text(up.x - 2, y + 12, font, &up.function.ids().to_string());
        }
    }

    fn colours(&self, node: &Node<'_>) -> Pair {
        match node.function.group() {
            None => palette::NO_GROUP,
            Some(group) if node.virtual_functions.is_none() => {
                self.groups.get(&group).copied().unwrap_or(palette::ALONE)
            }
            Some(_) => palette::ALONE,
        }
    }

    fn frame(&mut self, node: &Node<'_>, width: i32) {
        let (fill, stroke) = self.colours(node);
        self.svg.open(&format!(
            "{}: {}, driver {}",
            node.function.sbdf(),
            node.function.port_type(),
            node.function.driver().unwrap_or("none")
        ));
        self.svg.rect(Rect {
            x: node.x,
            y: node.y - BOX_HEIGHT / 2,
            width,
            height: BOX_HEIGHT,
            radius: 5,
            fill,
            stroke,
        });
        if let (Some(group), None) = (node.function.group(), node.virtual_functions) {
            let font = Font::new(11, stroke).bold().end();
            let font = if stroke == palette::ALONE.1 {
                Font {
                    colour: palette::FAINT,
                    ..font
                }
            } else {
                font
            };
            self.svg
                .text(node.x + width - 6, node.y - 3, font, &format!("g{group}"));
        }
    }

    fn port(&mut self, node: &Node<'_>) {
        self.frame(node, self.port_width);
        let name = self.names.of(node.function.sbdf());
        let font = Font::new(11, palette::INK).bold();
        self.svg.text(node.x + 7, node.y - 3, font, &name);
        let (colour, words) = port_words(node);
        self.svg
            .text(node.x + 7, node.y + 11, Font::new(10, colour), &words);
        self.svg.close();
    }

    fn endpoint(&mut self, node: &Node<'_>) {
        self.frame(node, self.endpoint_width);
        let (first, second) = endpoint_words(self.topology, self.names, node);
        let font = Font::new(12, palette::INK).bold();
        self.svg.text(node.x + 8, node.y - 2, font, &first);
        self.svg.text(
            node.x + 8,
            node.y + 12,
            Font::new(10, palette::FAINT),
            &second,
        );
        self.svg.close();
    }

    /// The legend of the signs, from `top` on. Returns its bottom edge.
    fn legend(&mut self, top: i32) -> i32 {
        let mut y = top;
        let ink = Font::new(11, palette::INK);
        if !self.groups.is_empty() {
            let mut x = MARGIN;
            for (fill, stroke) in self.groups.values().take(3) {
                self.svg.rect(Rect {
                    x,
                    y: y - 10,
                    width: 14,
                    height: 12,
                    radius: 3,
                    fill,
                    stroke,
                });
                x += 18;
            }
            let text = "boxes of one colour share an IOMMU group; white ones are alone in theirs (g9: group 9)";
            self.svg.text(x + 4, y, ink, text);
        } else {
            let text =
                "every function shown is in an IOMMU group of its own (g9: group 9), or in none";
            self.svg.text(MARGIN, y, ink, text);
        }
        y += LEGEND_STEP;
        for text in [
            "ACS on: the port sends requests from one device to another up to the IOMMU",
            "no ACS, redirect off: it does not; devices below it and beside it can reach each other directly",
        ] {
            self.svg.text(MARGIN, y, ink, text);
            y += LEGEND_STEP;
        }
        y
    }
}

/// Text about a port: its ACS.
fn port_words(node: &Node<'_>) -> (&'static str, String) {
    match describe::acs_in_short(node.function) {
        Some((tone, words)) => (palette::ink(tone), words),
        None => (palette::FAINT, short(node.function.port_type()).to_owned()),
    }
}

fn short(port_type: PortType) -> &'static str {
    match port_type {
        PortType::SwitchUpstream => "upstream",
        PortType::PcieToPciBridge => "PCIe to PCI",
        PortType::PciToPcieBridge => "PCI to PCIe",
        _ => "bridge",
    }
}
