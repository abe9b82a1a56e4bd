//! `p2pctl/plan/1` and `p2pctl/kernel-args/1`.

use anyhow::Result;
use hotplug::regroup::{Forecast, VmDevice};
use iommu_group::{Plan, Refusal, Warning};
use serde::Serialize;
use serde_json::{Value, json};

use super::{Document, Reason, with_text};

/// The fields of a plan.
#[derive(Debug, Default, Serialize)]
pub(crate) struct PlanFields {
    acceptable: bool,
    impossible: Vec<String>,
    objections: Vec<Value>,
    /// Reasons why `apply` would refuse the plan now; `None` if unknown.
    blockers: Option<Vec<Reason>>,
    /// The devices that virtual machines lose while the plan is applied; `None` if unknown.
    guests: Option<Vec<Guest>>,
    /// Time that virtual machines were without their devices in the last change, in milliseconds.
    last_away_ms: Option<u64>,
    /// The plan in the format of `-o`, which is versioned separately.
    plan: Option<Value>,
}

/// A device before and after the change.
#[derive(Debug, Serialize)]
struct Guest {
    #[serde(flatten)]
    now: VmDevice,
    after: Option<Value>,
}

/// The document of a plan and its current effects, or of infeasible goals.
pub(crate) fn plan(
    made: &Result<Plan, Refusal>,
    forecast: Option<&Forecast>,
) -> Result<Document<PlanFields>> {
    let fields = match made {
        Ok(plan) => PlanFields {
            acceptable: plan.is_acceptable(),
            impossible: Vec::new(),
            objections: plan.objections.iter().map(objection).collect(),
            blockers: forecast.map(|now| with_text(&now.blockers)),
            guests: forecast.map(guests),
            last_away_ms: forecast.and_then(|now| now.last_away_ms),
            plan: Some(serde_json::from_str(&plan.to_json())?),
        },
        Err(refusal) => PlanFields {
            impossible: refusal.reasons.iter().map(ToString::to_string).collect(),
            ..PlanFields::default()
        },
    };
    Ok(Document::new("p2pctl/plan/1", fields))
}

fn objection(warning: &Warning) -> Value {
    let (option, function) = warning.remedy().unzip();
    json!({ "text": warning.to_string(), "option": option, "function": function })
}

fn guests(forecast: &Forecast) -> Vec<Guest> {
    let devices = forecast.unplug.iter().map(|now| {
        let mut after = forecast.plug.iter();
        let after = after.find(|after| (&after.vm, &after.id) == (&now.vm, &now.id));
        Guest {
            now: now.clone(),
            after: after.map(|after| json!({ "p2p": after.p2p, "domain": after.domain })),
        }
    });
    devices.collect()
}

/// The document of a plan's kernel argument.
pub(crate) fn kernel_args(plan: &Plan) -> Document {
    let boot = plan.boot.as_ref();
    let fields = json!({
        "argument": boot.map(|boot| &boot.argument),
        "joins": boot.map(|boot| boot.joins),
        "wider": boot.into_iter().flat_map(|boot| &boot.wider).collect::<Vec<_>>(),
    });
    Document::new("p2pctl/kernel-args/1", fields)
}
