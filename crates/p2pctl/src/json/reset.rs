//! `p2pctl/reset-scope/1` and `p2pctl/reset/1`.

use std::collections::BTreeMap;

use hotplug::regroup::{ResetDone, ResetOrder};
use iommu_group::{AcsBits, Reset, ResetKind, Sbdf};
use serde::Serialize;

/// The document of `reset-scope`.
#[derive(Serialize)]
pub(crate) struct Document<'a> {
    schema: &'static str,
    function: Sbdf,
    resets: Vec<Entry>,
    chosen: Option<Entry>,
    not_owned: &'a [Sbdf],
}

#[derive(Serialize)]
struct Entry {
    kind: ResetKind,
    resets_function: bool,
    port: Option<Sbdf>,
    hits: Vec<Sbdf>,
    hit_ports: Vec<Sbdf>,
}

/// The document of the resets of a function.
pub(crate) fn document<'a>(
    function: Sbdf,
    resets: &[Reset],
    chosen: Option<&Reset>,
    not_owned: &'a [Sbdf],
) -> Document<'a> {
    Document {
        schema: "p2pctl/reset-scope/1",
        function,
        resets: resets.iter().map(entry).collect(),
        chosen: chosen.map(entry),
        not_owned,
    }
}

fn entry(reset: &Reset) -> Entry {
    Entry {
        kind: reset.kind,
        resets_function: reset.resets_function,
        port: reset.port,
        hits: reset.hits.clone(),
        hit_ports: reset.hit_ports.clone(),
    }
}

/// The document of `reset`.
#[derive(Serialize)]
pub(crate) struct ResultDocument<'a> {
    schema: &'static str,
    function: Sbdf,
    /// `done` or `refused`.
    outcome: &'static str,
    kind: Option<ResetKind>,
    hits: &'a [Sbdf],
    ports: Option<&'a BTreeMap<Sbdf, AcsBits>>,
    reasons: &'a [String],
}

/// The document of a requested reset.
pub(crate) fn result<'a>(
    order: &ResetOrder,
    result: &'a Result<ResetDone, Vec<String>>,
) -> ResultDocument<'a> {
    let (done, reasons) = match result {
        Ok(done) => (Some(done), &[][..]),
        Err(reasons) => (None, reasons.as_slice()),
    };
    ResultDocument {
        schema: "p2pctl/reset/1",
        function: order.function,
        outcome: if done.is_some() { "done" } else { "refused" },
        kind: done.map(|done| done.kind),
        hits: done.map_or(&[], |done| &done.hits),
        ports: done.map(|done| &done.ports),
        reasons,
    }
}
