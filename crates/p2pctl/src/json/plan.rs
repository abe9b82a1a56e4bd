//! `p2pctl/plan/1` and `p2pctl/kernel-args/1`.

use anyhow::Result;
use iommu_group::{Plan, Refusal, Sbdf};
use serde::Serialize;
use serde_json::Value;

/// The document of `plan`.
#[derive(Serialize)]
pub(crate) struct Document {
    schema: &'static str,
    acceptable: bool,
    impossible: Vec<String>,
    objections: Vec<ObjectionEntry>,
    /// The plan as `-o` writes it, which is a format of its own.
    plan: Option<Value>,
}

#[derive(Serialize)]
struct ObjectionEntry {
    text: String,
    option: Option<&'static str>,
    function: Option<Sbdf>,
}

/// The document of `kernel-args`.
#[derive(Serialize)]
pub(crate) struct Boot<'a> {
    schema: &'static str,
    argument: Option<&'a str>,
    joins: Option<bool>,
    wider: Vec<Sbdf>,
}

/// Makes the document of a plan, or of its impossibility.
pub(crate) fn document(made: &Result<Plan, Refusal>) -> Result<Document> {
    Ok(match made {
        Ok(plan) => Document {
            schema: "p2pctl/plan/1",
            acceptable: plan.is_acceptable(),
            impossible: Vec::new(),
            objections: plan
                .objections
                .iter()
                .map(|objection| ObjectionEntry {
                    text: objection.to_string(),
                    option: objection.remedy().map(|(option, _)| option),
                    function: objection.remedy().map(|(_, function)| function),
                })
                .collect(),
            plan: Some(serde_json::from_str(&plan.to_json())?),
        },
        Err(refusal) => Document {
            schema: "p2pctl/plan/1",
            acceptable: false,
            impossible: refusal.reasons.iter().map(ToString::to_string).collect(),
            objections: Vec::new(),
            plan: None,
        },
    })
}

/// Makes the document of a kernel argument.
pub(crate) fn boot(plan: &Plan) -> Boot<'_> {
    Boot {
        schema: "p2pctl/kernel-args/1",
        argument: plan.boot.as_ref().map(|boot| boot.argument.as_str()),
        joins: plan.boot.as_ref().map(|boot| boot.joins),
        wider: plan
            .boot
            .iter()
            .flat_map(|boot| boot.wider.iter().copied())
            .collect(),
    }
}
