//! `p2pctl/plan/1` and `p2pctl/kernel-args/1`.

use anyhow::Result;
use hotplug::regroup::{Blocker, Forecast, VmDevice};
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
    /// Reasons why `apply` would refuse the plan now; `None` if unknown.
    blockers: Option<Vec<BlockerEntry>>,
    /// The devices that virtual machines lose while the plan is applied; `None` if unknown.
    guests: Option<Vec<Guest>>,
    /// Time that virtual machines were without their devices in the last change, in milliseconds.
    last_away_ms: Option<u64>,
    /// The plan in the format of `-o`, which is versioned separately.
    plan: Option<Value>,
}

#[derive(Serialize)]
struct BlockerEntry {
    text: String,
    #[serde(flatten)]
    value: Blocker,
}

/// A device before and after the change.
#[derive(Serialize)]
struct Guest {
    #[serde(flatten)]
    now: VmDevice,
    after: Option<After>,
}

#[derive(Serialize)]
struct After {
    p2p: bool,
    domain: Option<String>,
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

fn blocker(blocker: &Blocker) -> BlockerEntry {
    BlockerEntry {
        text: blocker.to_string(),
        value: blocker.clone(),
    }
}

fn guest(now: &VmDevice, plug: &[VmDevice]) -> Guest {
    let mut after = plug.iter();
    let after = after.find(|after| (&after.vm, &after.id) == (&now.vm, &now.id));
    Guest {
        now: now.clone(),
        after: after.map(|after| After {
            p2p: after.p2p,
            domain: after.domain.clone(),
        }),
    }
}

/// The document of a plan and its current effects, or of infeasible goals.
pub(crate) fn document(
    made: &Result<Plan, Refusal>,
    forecast: Option<&Forecast>,
) -> Result<Document> {
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
            blockers: forecast.map(|now| now.blockers.iter().map(blocker).collect()),
            guests: forecast.map(|now| {
                let devices = now.unplug.iter();
                devices.map(|device| guest(device, &now.plug)).collect()
            }),
            last_away_ms: forecast.and_then(|now| now.last_away_ms),
            plan: Some(serde_json::from_str(&plan.to_json())?),
        },
        Err(refusal) => Document {
            schema: "p2pctl/plan/1",
            acceptable: false,
            impossible: refusal.reasons.iter().map(ToString::to_string).collect(),
            objections: Vec::new(),
            blockers: None,
            guests: None,
            last_away_ms: None,
            plan: None,
        },
    })
}

/// The document of a kernel argument.
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
