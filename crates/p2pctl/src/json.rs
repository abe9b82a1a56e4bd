//! The JSON documents of `--json` and of the daemon's API. JSON.md describes them.

mod apply;
mod groups;
mod matrix;
mod plan;
mod topology;

use hotplug::regroup::{Blocker, ResetDone};
use iommu_group::assignment::Exposed;
use iommu_group::{Reset, Sbdf};
use serde::Serialize;
use serde_json::{Value, json};

#[cfg(test)]
pub(crate) use apply::StatusDocument;
pub(crate) use apply::{nothing, refusal, report, status};
pub(crate) use groups::groups;
pub(crate) use matrix::matrix;
pub(crate) use plan::{kernel_args, plan};
pub(crate) use topology::topology;

/// A document: the name and version of its schema, and its fields.
#[derive(Debug, Serialize)]
pub(crate) struct Document<T = Value> {
    schema: &'static str,
    #[serde(flatten)]
    fields: T,
}

impl<T> Document<T> {
    pub(crate) fn new(schema: &'static str, fields: T) -> Self {
        Self { schema, fields }
    }
}

/// A value and its text. A reason that the daemon sent has the text only.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct WithText<T> {
    pub(crate) text: String,
    #[serde(flatten)]
    pub(crate) value: Option<T>,
}

/// Why a change is refused.
pub(crate) type Reason = WithText<Blocker>;

impl<T> WithText<T> {
    pub(crate) fn text_only(text: String) -> Self {
        Self { text, value: None }
    }
}

pub(crate) fn with_text<T: Clone + ToString>(values: &[T]) -> Vec<WithText<T>> {
    let values = values.iter().cloned().map(|value| WithText {
        text: value.to_string(),
        value: Some(value),
    });
    values.collect()
}

/// The name of an enum's variant.
pub(crate) fn variant(value: &impl Serialize) -> Option<String> {
    match serde_json::to_value(value).ok()? {
        Value::String(name) => Some(name),
        Value::Object(fields) => fields.into_iter().next().map(|(name, _)| name),
        _ => None,
    }
}

/// Accepted exposures, as several documents list them.
fn accepted(exposed: &[Exposed]) -> Vec<Value> {
    let entries = exposed.iter().map(
        |Exposed {
             exposure, consent, ..
         }| {
            json!({
                "function": exposure.function,
                "to": exposure.to,
                "through": exposure.through,
                "why": consent.as_ref().map(ToString::to_string).unwrap_or_default(),
            })
        },
    );
    entries.collect()
}

/// `p2pctl/reset-scope/1`.
pub(crate) fn reset_scope(
    function: Sbdf,
    resets: &[Reset],
    chosen: Option<&Reset>,
    not_owned: &[Sbdf],
) -> Document {
    let fields = json!({
        "function": function,
        "resets": resets,
        "chosen": chosen,
        "not_owned": not_owned,
    });
    Document::new("p2pctl/reset-scope/1", fields)
}

/// `p2pctl/reset/1`.
pub(crate) fn reset(function: Sbdf, result: &Result<ResetDone, Vec<String>>) -> Document {
    let done = result.as_ref().ok();
    let fields = json!({
        "function": function,
        "outcome": if done.is_some() { "done" } else { "refused" },
        "kind": done.map(|done| done.kind),
        "hits": done.map(|done| done.hits.as_slice()).unwrap_or_default(),
        "ports": done.map(|done| &done.ports),
        "reasons": result.as_ref().err().map(Vec::as_slice).unwrap_or_default(),
    });
    Document::new("p2pctl/reset/1", fields)
}
