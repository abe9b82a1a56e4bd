//! `p2pctl/apply/1` and `p2pctl/status/1`.

use std::path::Path;

use hotplug::regroup::{Difference, Report, Status, VmDevice};
use iommu_group::Sbdf;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Value, json};

use super::{Document, Reason, WithText, variant, with_text};

/// The fields of a change.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Change<'a> {
    /// `new`, `old`, `rebooted`, `refused` or `nothing`.
    outcome: String,
    transaction: Option<&'a str>,
    failure: Option<Value>,
    remains: Vec<WithText<Difference>>,
    blockers: &'a [Reason],
    /// The devices that virtual machines were without for `away_ms`.
    guests: &'a [VmDevice],
    away_ms: Option<u64>,
    journal: Option<&'a Path>,
    /// Why the journal is incomplete.
    unrecorded: Option<&'a str>,
    /// Why the change has not ended and needs another `recover`.
    open: Option<&'a str>,
}

fn document(fields: Change<'_>) -> Document<Change<'_>> {
    Document::new("p2pctl/apply/1", fields)
}

/// The document of a change that has ended.
pub(crate) fn report(report: &Report) -> Document<Change<'_>> {
    let failure = report.failure.as_ref();
    document(Change {
        outcome: variant(&report.outcome).unwrap_or_default(),
        transaction: Some(&report.id),
        failure: failure.map(|(action, error)| json!({ "action": action, "error": error })),
        remains: with_text(&report.remains),
        blockers: &[],
        guests: &report.unplugged,
        away_ms: report.away_ms,
        journal: Some(&report.journal),
        unrecorded: report.unrecorded.as_deref(),
        open: report.open.as_deref(),
    })
}

/// The document of a refused change.
pub(crate) fn refusal(reasons: &[Reason]) -> Document<Change<'_>> {
    document(Change {
        outcome: "refused".to_owned(),
        blockers: reasons,
        ..Change::default()
    })
}

/// The document if there is nothing to change.
pub(crate) fn nothing() -> Document<Change<'static>> {
    document(Change {
        outcome: "nothing".to_owned(),
        ..Change::default()
    })
}

/// The document of `status`.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct StatusDocument<'a> {
    schema: &'static str,
    busy: bool,
    unfinished: Option<Transaction<'a>>,
    held: Vec<Held<'a>>,
    finished: Vec<Transaction<'a>>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Transaction<'a> {
    transaction: Option<&'a str>,
    journal: &'a Path,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Held<'a> {
    port: Sbdf,
    power: &'a str,
}

/// The document of a state directory.
pub(crate) fn status(status: &Status) -> StatusDocument<'_> {
    let unfinished = status.unfinished.as_ref();
    let held = status.held.iter();
    let finished = status.finished.iter();
    StatusDocument {
        schema: "p2pctl/status/1",
        busy: status.busy,
        unfinished: unfinished.map(|unfinished| Transaction {
            transaction: unfinished.id.as_deref(),
            journal: &unfinished.journal,
        }),
        held: held
            .map(|held| Held {
                port: held.port,
                power: &held.power,
            })
            .collect(),
        finished: finished
            .map(|finished| Transaction {
                transaction: Some(&finished.id),
                journal: &finished.journal,
            })
            .collect(),
    }
}
