//! `p2pctl explain A B`: the path between two functions, the verdict, its reasons and advice.

mod advice;
mod path;

use anyhow::{Result, bail};
use iommu_group::{
    BlockReason, Denial, Firmware, GroupModel, Groups, Kernel, P2pDma, P2pMapping, Reason,
    RoutingModel, Sbdf, Topology, Verdict,
};

use super::matrix::{Cell, common_switch};
use crate::accepted;
use crate::answer::Answer;
use crate::cli::ExplainArgs;
use crate::isolation_holes;
use crate::json;
use crate::names::Names;
use crate::show::{Line, Text, Tone};
use crate::source::Source;

/// Width of the label column.
const LABEL: usize = 10;

/// Explains both directions. The exit status is that of the first direction.
pub(crate) fn run(source: &Source, args: &ExplainArgs, json: bool, width: usize) -> Result<Answer> {
    let pair @ [from, to] = [args.initiator, args.target];
    source.must_have(&pair)?;
    if from == to {
        bail!("{from} and {to} are the same function: name two functions");
    }
    let topology = source.topology();
    let pairs = source.host.pairs(args.rules.policy);
    let (routing, groups) = (pairs.routing(), pairs.groups());
    let there = pairs.verdict(from, to);
    let refused = !there.is_allowed();
    let mut accepted = accepted::of(source, &pair);
    accepted.retain(|accepted| accepted::is_between(accepted, pair));
    let holes = holes_between(routing, groups, pair);
    if json {
        let document = json::matrix("p2pctl/explain/1", &pairs, &pair, &holes, &accepted);
        return Ok(Answer::json(&document)?.refused_if(refused));
    }
    let explanation = Explanation {
        topology,
        names: source.names,
        routing,
        groups,
        width,
    };
    let mut text = explanation.direction(from, to, &there);
    let back = pairs.verdict(to, from);
    text.blank();
    if same(&there, &back) {
        text.push(
            explanation
                .answer(to, from, &back)
                .dim(", for the same reasons"),
        );
    } else {
        text.extend(explanation.direction(to, from, &back));
    }
    text.extend(isolation_holes::warning(
        topology,
        source.names,
        &holes,
        width,
    ));
    text.extend(accepted::lines(source, &accepted, width));
    Ok(Answer::text(text).about(source).refused_if(refused))
}

/// The isolation holes through which one of the two functions reaches the other.
fn holes_between(
    routing: &RoutingModel<'_>,
    groups: &Groups,
    [a, b]: [Sbdf; 2],
) -> Vec<iommu_group::IsolationHole> {
    let mut holes = routing.isolation_holes(groups);
    holes.retain(|hole| {
        let has = |from, to| hole.from.contains(&from) && hole.exposed.contains(&to);
        has(a, b) || has(b, a)
    });
    for hole in &mut holes {
        hole.from.retain(|f| *f == a || *f == b);
        hole.exposed.retain(|f| *f == a || *f == b);
    }
    holes
}

/// Whether the verdicts of both directions can be shown as one.
fn same(there: &Verdict, back: &Verdict) -> bool {
    let kinds = |verdict: &Verdict| match verdict {
        Verdict::Allowed { route, .. } => vec![format!("{route:?}")],
        Verdict::Denied { reasons } => reasons
            .iter()
            .map(|reason| match reason {
                Denial::DifferentGroups { .. } => "groups".to_owned(),
                Denial::Route(BlockReason::RootComplex { .. }) => "root complex".to_owned(),
                Denial::Route(BlockReason::Unreadable { .. }) => "unreadable".to_owned(),
                Denial::NoGroup { .. } => "no group".to_owned(),
                other => format!("{other:?}"),
            })
            .collect(),
    };
    kinds(there) == kinds(back)
}

struct Explanation<'a> {
    topology: &'a Topology,
    names: Names,
    routing: &'a RoutingModel<'a>,
    groups: &'a Groups,
    width: usize,
}

impl Explanation<'_> {
    fn of(&self, sbdf: Sbdf) -> String {
        self.names.of(sbdf)
    }

    fn direction(&self, from: Sbdf, to: Sbdf, verdict: &Verdict) -> Text {
        let path = self.routing.path(from, to);
        let mut text = Text::new();
        text.push(self.answer(from, to, verdict));
        text.blank();
        self.section(&mut text, "group", self.group_lines(from, to));
        self.section(&mut text, "path", vec![self.path_line(from, to, &path)]);
        self.section(&mut text, "hardware", self.hardware(from, to, &path));
        let others = self.other_reasons(verdict);
        self.section(&mut text, "also", others);
        if let Some(p2pdma) = self.routing.p2pdma(to, from) {
            self.section(&mut text, "kernel", vec![kernel(&p2pdma)]);
        }
        self.section(&mut text, "so", self.advice(from, to, verdict));
        text
    }

    /// The first line: initiator, target and verdict.
    fn answer(&self, from: Sbdf, to: Sbdf, verdict: &Verdict) -> Line {
        let common = common_switch(self.routing, from, to).is_some();
        let cell = Cell::of(verdict, common);
        let words = match (verdict, cell) {
            (Verdict::Allowed { .. }, cell) => cell.meaning(),
            (Verdict::Denied { .. }, Cell::Unknown) => "unknown",
            (Verdict::Denied { .. }, _) => "refused",
        };
        Line::new()
            .strong(format_args!("{} → {}: ", self.of(from), self.of(to)))
            .toned(cell.tone(), words)
    }

    fn section(&self, text: &mut Text, label: &str, lines: Vec<Line>) {
        text.push_section((label, LABEL), lines, self.width);
    }

    fn group_lines(&self, from: Sbdf, to: Sbdf) -> Vec<Line> {
        let number = |sbdf| {
            self.topology
                .get(sbdf)
                .and_then(iommu_group::Function::group)
        };
        let (a, b) = (number(from), number(to));
        match (a, b) {
            (Some(a), Some(b)) if a == b => {
                let others = self
                    .groups
                    .group_of(from)
                    .map_or(0, <[Sbdf]>::len)
                    .saturating_sub(2);
                let others = match others {
                    0 => String::new(),
                    1 => ", with 1 other function".to_owned(),
                    count => format!(", with {count} other functions"),
                };
                vec![
                    Line::new()
                        .plain("both are in ")
                        .toned(Tone::Name, format_args!("group {a}"))
                        .plain(others),
                ]
            }
            (Some(a), Some(b)) => {
                let mut lines = vec![
                    Line::new()
                        .plain(format_args!("{} is in ", self.of(from)))
                        .toned(Tone::Name, format_args!("group {a}"))
                        .plain(format_args!(", {} in ", self.of(to)))
                        .toned(Tone::Name, format_args!("group {b}")),
                ];
                lines.extend(self.reasons(from, to));
                lines
            }
            (a, b) => [(from, a), (to, b)]
                .into_iter()
                .filter(|(_, group)| group.is_none())
                .map(|(sbdf, _)| {
                    format!("{} has no IOMMU group: no IOMMU isolates it", self.of(sbdf)).into()
                })
                .collect(),
        }
    }

    /// Why two functions in different groups are in their groups.
    fn reasons(&self, from: Sbdf, to: Sbdf) -> Vec<Line> {
        let kernel = Kernel::of(self.topology);
        let booted = GroupModel::booted(self.topology, &kernel, Firmware::Cleared);
        [from, to]
            .into_iter()
            .filter_map(|sbdf| Some((sbdf, booted.reason(sbdf)?)))
            .map(|(sbdf, reason)| match reason {
                // The group number shows this reason.
                Reason::New => format!(
                    "{}: all ports above it have the ACS that Linux asks for",
                    self.of(sbdf)
                )
                .into(),
                reason => format!(
                    "{}: {}",
                    self.of(sbdf),
                    self.names.shorten(&reason.to_string())
                )
                .into(),
            })
            .collect()
    }

    /// Reasons for a refusal other than groups and routes.
    fn other_reasons(&self, verdict: &Verdict) -> Vec<Line> {
        let Verdict::Denied { reasons } = verdict else {
            return Vec::new();
        };
        reasons
            .iter()
            .filter(|reason| matches!(reason, Denial::Role { .. } | Denial::NoMemory { .. }))
            .map(|reason| self.names.shorten(&reason.to_string()).into())
            .collect()
    }
}

/// The result of the kernel's own P2P code, which does not apply to virtual machines.
fn kernel(p2pdma: &P2pDma) -> Line {
    let words = match p2pdma.mapping {
        P2pMapping::BusAddress => "by bus address",
        P2pMapping::ThroughHostBridge => "through the host bridge",
        P2pMapping::NotSupported => "not supported",
    };
    Line::new().dim(format_args!(
        "p2pdma, for this kernel's own drivers: {words} (distance {})",
        p2pdma.distance
    ))
}
