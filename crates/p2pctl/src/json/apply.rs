//! `p2pctl/apply/1` and `p2pctl/status/1`.

use std::path::Path;

use hotplug::regroup::{Blocker, Difference, Outcome, Report, Status, VmDevice};
use schemars::JsonSchema;
use serde::Serialize;

/// The document of `apply` and `recover`.
#[derive(Serialize)]
pub(crate) struct Document<'a> {
    schema: &'static str,
    /// `new`, `old`, `rebooted`, `refused` or `nothing`.
    outcome: &'static str,
    transaction: Option<&'a str>,
    failure: Option<Failure<'a>>,
    remains: Vec<Entry<'a, Difference>>,
    blockers: Vec<Reason<'a>>,
    /// The devices that virtual machines were without for `away_ms`.
    guests: &'a [VmDevice],
    away_ms: Option<u64>,
    journal: Option<&'a Path>,
    /// Why the journal is incomplete.
    unrecorded: Option<&'a str>,
    /// Why the change has not ended and needs another `recover`.
    open: Option<&'a str>,
}

#[derive(Serialize)]
struct Failure<'a> {
    action: &'a str,
    error: &'a str,
}

/// A reason as text and, if known, as a value. The daemon sends the text only.
#[derive(Serialize)]
struct Reason<'a> {
    text: &'a str,
    #[serde(flatten)]
    value: Option<&'a Blocker>,
}

#[derive(Serialize)]
struct Entry<'a, T: Serialize> {
    text: String,
    #[serde(flatten)]
    value: &'a T,
}

fn entries<T: Serialize + ToString>(values: &[T]) -> Vec<Entry<'_, T>> {
    let entry = |value| Entry {
        text: T::to_string(value),
        value,
    };
    values.iter().map(entry).collect()
}

const SCHEMA: &str = "p2pctl/apply/1";

/// The document of a change that has ended.
pub(crate) fn report(report: &Report) -> Document<'_> {
    Document {
        schema: SCHEMA,
        outcome: match report.outcome {
            Outcome::New => "new",
            Outcome::Old => "old",
            Outcome::Rebooted => "rebooted",
        },
        transaction: Some(&report.id),
        failure: report
            .failure
            .as_ref()
            .map(|(action, error)| Failure { action, error }),
        remains: entries(&report.remains),
        blockers: Vec::new(),
        guests: &report.unplugged,
        away_ms: report.away_ms,
        journal: Some(&report.journal),
        unrecorded: report.unrecorded.as_deref(),
        open: report.open.as_deref(),
    }
}

/// The document of a refused change.
pub(crate) fn refusal<'a>(reasons: &'a [String], blockers: &'a [Blocker]) -> Document<'a> {
    let reason = |(index, text): (usize, &'a String)| Reason {
        text,
        value: blockers.get(index),
    };
    Document {
        outcome: "refused",
        blockers: reasons.iter().enumerate().map(reason).collect(),
        ..nothing()
    }
}

/// The document if there is nothing to change.
pub(crate) fn nothing<'a>() -> Document<'a> {
    Document {
        schema: SCHEMA,
        outcome: "nothing",
        transaction: None,
        failure: None,
        remains: Vec::new(),
        blockers: Vec::new(),
        guests: &[],
        away_ms: None,
        journal: None,
        unrecorded: None,
        open: None,
    }
}

/// The document of `status`.
#[derive(Serialize, JsonSchema)]
pub(crate) struct StatusDocument<'a> {
    schema: &'static str,
    busy: bool,
    unfinished: Option<Transaction<'a>>,
    held: Vec<Held<'a>>,
    finished: Vec<Transaction<'a>>,
}

#[derive(Serialize, JsonSchema)]
struct Transaction<'a> {
    transaction: Option<&'a str>,
    journal: &'a Path,
}

#[derive(Serialize, JsonSchema)]
struct Held<'a> {
    port: iommu_group::Sbdf,
    power: &'a str,
}

/// The document of a state directory.
pub(crate) fn status(status: &Status) -> StatusDocument<'_> {
    StatusDocument {
        schema: "p2pctl/status/1",
        busy: status.busy,
        unfinished: status.unfinished.as_ref().map(|unfinished| Transaction {
            transaction: unfinished.id.as_deref(),
            journal: &unfinished.journal,
        }),
        held: status
            .held
            .iter()
            .map(|held| Held {
                port: held.port,
                power: &held.power,
            })
            .collect(),
        finished: status
            .finished
            .iter()
            .map(|finished| Transaction {
                transaction: Some(&finished.id),
                journal: &finished.journal,
            })
            .collect(),
    }
}
