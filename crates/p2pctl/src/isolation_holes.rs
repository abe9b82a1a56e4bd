//! Warnings about isolation holes between IOMMU groups.

use std::collections::{BTreeMap, BTreeSet};

use iommu_group::{GroupId, Groups, IsolationHole, RoutingModel, Sbdf, Topology};

use crate::names::Names;
use crate::show::{Line, Text, Tone};

/// Maximum number of functions that are listed by name.
const FEW: usize = 8;

/// The isolation holes of one switch.
struct SwitchHoles {
    switch: Sbdf,
    ways: Vec<Way>,
}

/// Initiators and the targets that they reach.
struct Way {
    from: Vec<Sbdf>,
    /// Empty if the functions in `from` reach each other.
    to: Vec<Sbdf>,
}

/// The isolation holes from or to these functions; all of them if no function is given.
pub(crate) fn concerning(mut holes: Vec<IsolationHole>, functions: &[Sbdf]) -> Vec<IsolationHole> {
    if !functions.is_empty() {
        holes.retain(|hole| {
            let mut ends = hole.from.iter().chain(&hole.exposed);
            ends.any(|end| functions.contains(end))
        });
    }
    holes
}

/// The warnings about the current holes from or to these functions; all of them if no function is given.
pub(crate) fn current(topology: &Topology, names: Names, functions: &[Sbdf], width: usize) -> Text {
    let holes = RoutingModel::found(topology).isolation_holes(&Groups::found(topology));
    warning(topology, names, &concerning(holes, functions), width)
}

/// A warning for every switch that routes between groups and bypasses the IOMMU. Empty if there is none.
pub(crate) fn warning(
    topology: &Topology,
    names: Names,
    holes: &[IsolationHole],
    width: usize,
) -> Text {
    let mut text = Text::new();
    for hole in by_switch(holes) {
        text.blank();
        for line in words(topology, names, &hole) {
            text.push_wrapped(&line, width, 2);
        }
    }
    text
}

/// The warnings as plain sentences, for pictures.
pub(crate) fn sentences(topology: &Topology, names: Names, holes: &[IsolationHole]) -> Vec<String> {
    by_switch(holes)
        .iter()
        .flat_map(|hole| words(topology, names, hole))
        .map(|line| line.to_string())
        .filter(|line| line.starts_with('!'))
        .collect()
}

fn by_switch(holes: &[IsolationHole]) -> Vec<SwitchHoles> {
    let mut by_switch: BTreeMap<Sbdf, Vec<&IsolationHole>> = BTreeMap::new();
    for hole in holes {
        by_switch.entry(hole.switch).or_default().push(hole);
    }
    by_switch
        .into_iter()
        .map(|(switch, holes)| {
            let ways: BTreeSet<(Sbdf, Sbdf)> = holes.iter().map(|l| (l.port, l.into)).collect();
            let ports: BTreeSet<Sbdf> = ways.iter().flat_map(|(a, b)| [*a, *b]).collect();
            let mutual = ways.len() == ports.len() * ports.len().saturating_sub(1);
            let ways = if mutual {
                let ends = holes.iter().flat_map(|l| l.from.iter().chain(&l.exposed));
                let ends: BTreeSet<Sbdf> = ends.copied().collect();
                vec![Way {
                    from: ends.into_iter().collect(),
                    to: Vec::new(),
                }]
            } else {
                one_way(&holes)
            };
            SwitchHoles { switch, ways }
        })
        .collect()
}

/// Combines the holes into as few sentences as possible.
fn one_way(holes: &[&IsolationHole]) -> Vec<Way> {
    let mut sources: BTreeMap<Sbdf, BTreeSet<Sbdf>> = BTreeMap::new();
    for hole in holes {
        for exposed in &hole.exposed {
            sources.entry(*exposed).or_default().extend(&hole.from);
        }
    }
    let mut targets: BTreeMap<BTreeSet<Sbdf>, Vec<Sbdf>> = BTreeMap::new();
    for (exposed, from) in sources {
        targets.entry(from).or_default().push(exposed);
    }
    targets
        .into_iter()
        .map(|(from, to)| Way {
            from: from.into_iter().collect(),
            to,
        })
        .collect()
}

fn words(topology: &Topology, names: Names, hole: &SwitchHoles) -> Vec<Line> {
    let switch = names.of(hole.switch);
    let mut lines = Vec::new();
    for Way { from, to } in &hole.ways {
        let all: Vec<Sbdf> = from.iter().chain(to).copied().collect();
        let groups: BTreeSet<GroupId> = all
            .iter()
            .filter_map(|sbdf| topology.get(*sbdf)?.group())
            .collect();
        let groups: Vec<String> = groups.iter().map(ToString::to_string).collect();
        let way = if to.is_empty() {
            format!("between {}", list(from, names))
        } else {
            format!("from {} to {}", list(from, names), list(to, names))
        };
        lines.push(
            Line::new()
                .toned(Tone::Bad, "! ")
                .toned(
                    Tone::Bad,
                    format_args!("groups {} are separate in Linux, but ", and(&groups)),
                )
                .toned(
                    Tone::Bad,
                    format_args!("switch {switch} routes {way} without the IOMMU."),
                ),
        );
    }
    let pair = hole.ways.first().and_then(|Way { from, to }| {
        let first = from.first()?;
        let other = if to.is_empty() {
            from.last()?
        } else {
            to.first()?
        };
        Some(format!("{} {}", names.of(*first), names.of(*other)))
    });
    lines.push(Line::new().plain(format_args!(
        "  Do not give them to different tenants. p2pctl explain {}",
        pair.unwrap_or_default()
    )));
    lines
}

fn list(functions: &[Sbdf], names: Names) -> String {
    let mut words: Vec<String> = functions.iter().take(FEW).map(|f| names.of(*f)).collect();
    if functions.len() > FEW {
        words.push(format!("{} more", functions.len() - FEW));
    }
    and(&words)
}

/// Joins words into a list: `a, b and c`.
fn and(words: &[String]) -> String {
    match words.split_last() {
        None => String::new(),
        Some((last, [])) => last.clone(),
        Some((last, others)) => format!("{} and {last}", others.join(", ")),
    }
}
