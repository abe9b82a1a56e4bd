//! `p2pctl topology`: the tree of functions.

use anyhow::Result;
use iommu_group::{Function, PortType, RootBus, RoutingModel, Sbdf, Topology};

use crate::accepted;
use crate::answer::Answer;
use crate::cli::TopologyArgs;
use crate::describe;
use crate::isolation_holes;
use crate::json;
use crate::names::Names;
use crate::show::{Line, Table, Text, Tone, branches};
use crate::source::Source;

/// Up to this number, the virtual functions of a physical function are shown one per line.
const FEW: usize = 4;

/// Shows the tree.
pub(crate) fn run(
    source: &Source,
    args: &TopologyArgs,
    json: bool,
    width: usize,
) -> Result<Answer> {
    source.must_have(&args.below)?;
    let topology = source.topology();
    let shown: Vec<Sbdf> = args
        .below
        .iter()
        .flat_map(|top| {
            let below = topology.descendants(*top).map(Function::sbdf);
            below.chain([*top])
        })
        .collect();
    let accepted = accepted::of(source, &shown);
    if json {
        return Answer::json(&json::topology(topology, &args.below, &accepted));
    }
    let mut text = show(topology, source.names, args);
    text.extend(isolation_holes::current(
        topology,
        source.names,
        &shown,
        width,
    ));
    text.extend(accepted::lines(source, &accepted, width));
    Ok(Answer::text(text).about(source))
}

/// The tree as text.
fn show(topology: &Topology, names: Names, args: &TopologyArgs) -> Text {
    let mut tree = Tree {
        topology,
        names,
        all: args.all,
        table: Table::default(),
    };
    if args.below.is_empty() {
        for root in topology.root_buses() {
            tree.root(root);
        }
    } else {
        for top in args.below.iter().filter_map(|sbdf| topology.get(*sbdf)) {
            tree.function(top, &mut Vec::new());
        }
    }
    // Lines of a tree are not wrapped, because that would break the branches.
    tree.table.render(usize::MAX)
}

struct Tree<'a> {
    topology: &'a Topology,
    names: Names,
    all: bool,
    table: Table,
}

impl Tree<'_> {
    fn root(&mut self, root: &RootBus) {
        let mut about = Vec::new();
        if let Some(node) = self
            .topology
            .on_root_bus(root)
            .find_map(Function::numa_node)
        {
            about.push(format!("node {node}"));
        }
        if let Some(routes) = self.root_complex(root) {
            about.push(routes.to_owned());
        }
        if let Some(behind) = root.behind {
            about.push(format!("behind {}", self.names.of(behind)));
        }
        self.table.row(vec![
            Line::new()
                .strong(root)
                .dim(format_args!("  {}", about.join(", "))),
        ]);
        let functions: Vec<&Function> = self.topology.on_root_bus(root).collect();
        self.siblings(&functions, &mut Vec::new());
    }

    /// Whether the root complex is known to route between devices; `None` without root ports.
    fn root_complex(&self, root: &RootBus) -> Option<&'static str> {
        let port = self
            .topology
            .on_root_bus(root)
            .find(|f| f.port_type() == PortType::RootPort)?;
        let opinion = RoutingModel::found(self.topology).p2pdma(port.sbdf(), port.sbdf())?;
        Some(if opinion.cpu_supports || opinion.host_bridge_listed {
            "routes P2P"
        } else {
            "not known to route P2P"
        })
    }

    fn siblings(&mut self, functions: &[&Function], last: &mut Vec<bool>) {
        let rows = self.rows(functions);
        let count = rows.len();
        for (index, row) in rows.into_iter().enumerate() {
            last.push(index + 1 == count);
            match row {
                Row::One(function) => self.function(function, last),
                Row::Virtual(functions) => self.virtual_functions(&functions, last),
            }
            last.pop();
        }
    }

    /// The rows of siblings. Many virtual functions of a physical function share one row.
    fn rows<'f>(&self, functions: &[&'f Function]) -> Vec<Row<'f>> {
        let mut rows: Vec<Row<'f>> = Vec::new();
        for function in functions {
            if function.is_virtual() && !self.all {
                let same = |row: &&mut Row<'f>| match row {
                    Row::Virtual(others) => others.first().is_some_and(|first| {
                        first.physical_function() == function.physical_function()
                    }),
                    Row::One(_) => false,
                };
                match rows.iter_mut().rev().find(same) {
                    Some(Row::Virtual(others)) => others.push(function),
                    _ => rows.push(Row::Virtual(vec![function])),
                }
            } else {
                rows.push(Row::One(function));
            }
        }
        rows.into_iter()
            .flat_map(|row| match row {
                Row::Virtual(few) if few.len() <= FEW => few.into_iter().map(Row::One).collect(),
                row => vec![row],
            })
            .collect()
    }

    fn function(&mut self, function: &Function, last: &mut Vec<bool>) {
        let children: Vec<&Function> = self.topology.children(function.sbdf()).collect();
        let empty = function.port_type().is_downstream() && children.is_empty();
        let mut about = describe::acs(function);
        let mut words = Vec::new();
        // `pcieport` is the normal driver of a port and not shown.
        if let Some(driver) = function.driver().filter(|driver| *driver != "pcieport") {
            words.push(driver.to_owned());
        }
        if !function.is_bridge() {
            words.extend(describe::remarks(self.topology, function));
        }
        if empty {
            words.push("empty".to_owned());
        }
        if !about.is_empty() && !words.is_empty() {
            about = about.plain("  ");
        }
        let what = describe::what(function);
        self.table.row(vec![
            Line::new()
                .dim(branches(last))
                .plain(self.names.of(function.sbdf())),
            if function.is_bridge() {
                what.into()
            } else {
                Line::new().strong(what)
            },
            group(function),
            describe::link(self.topology, function),
            about.plain(words.join("  ")),
        ]);
        self.siblings(&children, last);
    }

    fn virtual_functions(&mut self, functions: &[&Function], last: &[bool]) {
        let (Some(first), Some(end)) = (functions.first(), functions.last()) else {
            return;
        };
        let groups: Vec<_> = functions.iter().filter_map(|f| f.group()).collect();
        let groups = match (groups.iter().min(), groups.iter().max()) {
            (Some(low), Some(high)) if low == high => format!("g{low}"),
            (Some(low), Some(high)) => format!("g{low}…{high}"),
            _ => String::new(),
        };
        let mut drivers: Vec<&str> = functions
            .iter()
            .map(|f| f.driver().unwrap_or("no driver"))
            .collect();
        drivers.sort_unstable();
        drivers.dedup();
        self.table.row(vec![
            Line::new().dim(branches(last)).plain(format_args!(
                "{}…{}",
                self.names.of(first.sbdf()),
                self.names.of(end.sbdf())
            )),
            Line::new().strong(format_args!("{} VFs {}", functions.len(), first.ids())),
            Line::new().toned(Tone::Name, groups),
            Line::new(),
            drivers.join(", ").into(),
        ]);
    }
}

enum Row<'a> {
    One(&'a Function),
    Virtual(Vec<&'a Function>),
}

fn group(function: &Function) -> Line {
    match function.group() {
        Some(group) => Line::new().toned(Tone::Name, format_args!("g{group}")),
        None => Line::new(),
    }
}
