//! `p2pctl/reset-scope/1`.

use iommu_group::{Reset, ResetKind, Sbdf};
use serde::Serialize;

/// The document.
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

/// Makes the document.
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
