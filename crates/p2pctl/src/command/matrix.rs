//! `p2pctl matrix`: the verdicts for all pairs.

use std::collections::BTreeMap;

use anyhow::Result;
use iommu_group::assignment::{Exposed, PairRules};
use iommu_group::{
    BlockReason, Denial, IsolationHole, PortType, Route, RoutingModel, Sbdf, Scope, Topology,
    Verdict,
};

use crate::accepted;
use crate::answer::Answer;
use crate::cli::MatrixArgs;
use crate::describe;
use crate::isolation_holes;
use crate::json::{self, Document};
use crate::names::Names;
use crate::peers::Peers;
use crate::show::{Line, Text, Tone};
use crate::source::Source;

/// Name and version of the document.
const MATRIX: &str = "p2pctl/matrix/1";

/// A cell of the matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Cell {
    /// The function itself.
    Itself,
    /// Allowed, directly across the switch.
    Direct,
    /// Allowed, directly across the switch by translated addresses.
    DirectTranslated,
    /// Allowed, through the IOMMU.
    ThroughIommu,
    /// Refused only because of the groups, or of the groups and a switch that redirects. A plan can change both.
    Groups,
    /// Refused only because of the groups, and there is no common switch. A plan cannot change that.
    GroupsApart,
    /// Same group, but the switch redirects requests to a root complex that is not known to route them back.
    Redirected,
    /// The path goes through root complexes that are not known to route.
    RootComplex,
    /// No IOMMU group.
    NoGroup,
    /// The target has no memory.
    NoMemory,
    /// Refused for another reason.
    Blocked,
    /// Part of the path could not be read.
    Unknown,
}

impl Cell {
    /// The cell of a verdict. `common` is whether both functions are below one switch.
    pub(crate) fn of(verdict: &Verdict, common: bool) -> Self {
        let reasons = match verdict {
            Verdict::Allowed { route, .. } => {
                return match route {
                    Route::SwitchLocal => Self::Direct,
                    Route::SwitchLocalTranslated => Self::DirectTranslated,
                    Route::HostBridge => Self::ThroughIommu,
                    Route::Blocked(_) => Self::Blocked,
                };
            }
            Verdict::Denied { reasons } => reasons,
        };
        let worst = reasons.iter().map(|reason| Self::of_denial(reason, common));
        let groups = reasons
            .iter()
            .any(|r| matches!(r, Denial::DifferentGroups { .. }));
        match worst.max() {
            Some(Self::Redirected) if groups => Self::Groups,
            Some(Self::Groups) if !common => Self::GroupsApart,
            Some(cell) => cell,
            None => Self::Blocked,
        }
    }

    fn of_denial(denial: &Denial, common: bool) -> Self {
        match denial {
            Denial::DifferentGroups { .. } => Self::Groups,
            Denial::NoGroup { .. } => Self::NoGroup,
            Denial::NoMemory { .. } => Self::NoMemory,
            Denial::Route(BlockReason::Unreadable { .. }) => Self::Unknown,
            Denial::Route(BlockReason::RootComplex { .. }) if common => Self::Redirected,
            Denial::Route(BlockReason::RootComplex { .. }) => Self::RootComplex,
            Denial::Role { .. } | Denial::Route(_) => Self::Blocked,
        }
    }

    pub(crate) fn sign(self) -> char {
        self.legend().0
    }

    pub(crate) fn tone(self) -> Tone {
        self.legend().1
    }

    /// The meaning of the sign, and advice.
    pub(crate) fn meaning(self) -> &'static str {
        self.legend().2
    }

    fn legend(self) -> (char, Tone, &'static str) {
        use Tone::{Bad, Dim, Good, Warn};
        match self {
            Self::Itself => ('·', Dim, ""),
            Self::Direct => ('●', Good, "allowed, direct in the switch"),
            Self::DirectTranslated => (
                '◐',
                Good,
                "allowed, direct in the switch by translated addresses (ATS)",
            ),
            Self::ThroughIommu => ('○', Good, "allowed, through the IOMMU"),
            Self::Groups => (
                'g',
                Warn,
                "refused: different IOMMU groups (p2pctl plan --join A B)",
            ),
            Self::GroupsApart => (
                'i',
                Warn,
                "refused: different IOMMU groups, and no switch above both to join them; the IOMMU \
                 would route it (--policy same-vm allows that)",
            ),
            Self::Redirected => (
                'r',
                Warn,
                "refused: the switch redirects to a root complex that is not known to route P2P \
                 (p2pctl plan --join A B)",
            ),
            Self::RootComplex => (
                'h',
                Bad,
                "refused: only through a root complex that is not known to route P2P",
            ),
            Self::NoGroup => ('n', Bad, "refused: no IOMMU group, so no IOMMU isolates it"),
            Self::NoMemory => ('m', Bad, "refused: the target has no memory BAR"),
            Self::Blocked => (
                'x',
                Bad,
                "refused: the hardware or the policy prevents it (p2pctl explain A B)",
            ),
            Self::Unknown => ('?', Warn, "unknown: run as root"),
        }
    }
}

/// The verdicts for all pairs.
pub(crate) struct Matrix {
    pub(crate) functions: Vec<Sbdf>,
    /// One row per initiator, with one cell per target.
    pub(crate) cells: Vec<Vec<Cell>>,
}

impl Matrix {
    /// Compares every function with every other.
    pub(crate) fn new(pairs: &PairRules<'_>, functions: Vec<Sbdf>) -> Self {
        let cell = |from: Sbdf, to: Sbdf| {
            if from == to {
                return Cell::Itself;
            }
            let verdict = pairs.verdict(from, to);
            Cell::of(&verdict, common_switch(pairs.routing(), from, to).is_some())
        };
        let cells = functions
            .iter()
            .map(|from| functions.iter().map(|to| cell(*from, *to)).collect())
            .collect();
        Self { functions, cells }
    }

    /// The signs in use, allowed ones first.
    pub(crate) fn used(&self) -> Vec<Cell> {
        let mut counts: BTreeMap<Cell, usize> = BTreeMap::new();
        for cell in self.cells.iter().flatten().filter(|c| **c != Cell::Itself) {
            *counts.entry(*cell).or_default() += 1;
        }
        counts.into_keys().collect()
    }
}

/// The upstream port of the lowest switch above both functions.
pub(crate) fn common_switch(routing: &RoutingModel<'_>, from: Sbdf, to: Sbdf) -> Option<Sbdf> {
    let common = routing.topology().get(routing.path(from, to).common?)?;
    (common.port_type() == PortType::SwitchUpstream).then(|| common.sbdf())
}

/// The document of `matrix` for all pairs of the named functions.
pub(crate) fn document(source: &Source, named: &[Sbdf], scope: Scope) -> Result<Document> {
    let peers = Peers::select(source, named)?;
    let pairs = source.host.pairs(scope);
    let (holes, accepted) = warnings(source, &pairs, named, &peers.functions);
    let functions = &peers.functions;
    Ok(json::matrix(MATRIX, &pairs, functions, &holes, &accepted))
}

/// The isolation holes and the accepted exposures of these functions; all of them if none is named.
fn warnings(
    source: &Source,
    pairs: &PairRules<'_>,
    named: &[Sbdf],
    functions: &[Sbdf],
) -> (Vec<IsolationHole>, Vec<Exposed>) {
    let concerned = if named.is_empty() { &[] } else { functions };
    let holes =
        isolation_holes::concerning(pairs.routing().isolation_holes(pairs.groups()), concerned);
    (holes, accepted::of(source, concerned))
}

/// Shows the matrix.
pub(crate) fn run(source: &Source, args: &MatrixArgs, json: bool, width: usize) -> Result<Answer> {
    let (named, scope) = (&args.functions, args.rules.policy);
    if json {
        return Answer::json(&document(source, named, scope)?);
    }
    let topology = source.topology();
    let peers = Peers::select(source, named)?;
    let pairs = source.host.pairs(scope);
    let (holes, accepted) = warnings(source, &pairs, named, &peers.functions);
    let matrix = Matrix::new(&pairs, peers.functions);
    let mut text = Text::new();
    if matrix.functions.is_empty() {
        return Ok(Answer::text(text).note("no function here has memory that a peer could reach"));
    }
    text.extend(table(topology, source.names, &matrix, width));
    text.blank();
    text.extend(legend(&matrix, width));
    text.extend(isolation_holes::warning(
        topology,
        source.names,
        &holes,
        width,
    ));
    text.extend(accepted::lines(source, &accepted, width));
    let answer = Answer::text(text).about(source);
    Ok(match peers.left_out {
        0 => answer,
        count => answer.note(format_args!(
            "{count} virtual or conventional functions are omitted: name them to include them"
        )),
    })
}

/// The table, with names above the columns if they fit, otherwise with numbers.
fn table(topology: &Topology, names: Names, matrix: &Matrix, width: usize) -> Text {
    let labels: Vec<String> = matrix.functions.iter().map(|f| names.of(*f)).collect();
    let widest = labels.iter().map(String::len).max().unwrap_or(0);
    if (widest + 2) * (labels.len() + 1) <= width {
        return named(&labels, widest, matrix);
    }
    let described: Vec<String> = labels
        .iter()
        .zip(&matrix.functions)
        .map(|(label, sbdf)| {
            let what = topology.get(*sbdf).map(describe::what).unwrap_or_default();
            format!("{label:widest$}  {what}")
        })
        .collect();
    let room = width.saturating_sub(4 + 2 * labels.len());
    if described.iter().all(|label| label.chars().count() <= room) {
        numbered(&described, matrix)
    } else {
        numbered(&labels, matrix)
    }
}

fn named(labels: &[String], widest: usize, matrix: &Matrix) -> Text {
    let mut text = Text::new();
    let head = labels.iter().fold(Line::new().pad(widest), |line, label| {
        line.dim(format_args!("  {label:>widest$}"))
    });
    text.push(head);
    for (label, cells) in labels.iter().zip(&matrix.cells) {
        let mut line = Line::new().plain(format_args!("{label:widest$}"));
        for cell in cells {
            // The sign is below the middle of the name.
            let before = 2 + widest / 2;
            let after = widest - widest / 2 - 1;
            line = line
                .plain(" ".repeat(before))
                .toned(cell.tone(), cell.sign())
                .plain(" ".repeat(after));
        }
        text.push(line);
    }
    text
}

fn numbered(labels: &[String], matrix: &Matrix) -> Text {
    let mut text = Text::new();
    let widest = labels.iter().map(|l| l.chars().count()).max().unwrap_or(0);
    let count = labels.len();
    let mut head = Vec::new();
    if count >= 100 {
        head.push(100);
    }
    if count >= 10 {
        head.push(10);
    }
    head.push(1);
    for unit in head {
        let mut line = Line::new().pad(widest + 5);
        for number in 1..=count {
            let digit = if number >= unit {
                ((number / unit) % 10).to_string()
            } else {
                " ".to_owned()
            };
            line = line.dim(format_args!(" {digit}"));
        }
        text.push(line);
    }
    for ((label, cells), number) in labels.iter().zip(&matrix.cells).zip(1..) {
        let mut line = Line::new()
            .dim(format_args!("{number:>3}"))
            .plain(format_args!("  {label:widest$}"));
        for cell in cells {
            line = line.plain(" ").toned(cell.tone(), cell.sign());
        }
        text.push(line);
    }
    text
}

fn legend(matrix: &Matrix, width: usize) -> Text {
    let mut text = Text::new();
    text.push_wrapped(
        &Line::new().dim("rows are initiators, columns are targets"),
        width,
        0,
    );
    for cell in matrix.used() {
        let line = Line::new()
            .toned(cell.tone(), cell.sign())
            .plain("  ")
            .plain(cell.meaning());
        text.push_wrapped(&line, width, 3);
    }
    text
}
