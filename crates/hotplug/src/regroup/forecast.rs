//! The effects that a plan would have now.

use std::time::Duration;

use iommu_group::{Plan, Topology};
use serde::{Deserialize, Serialize};

use super::blocker::Blocker;
use super::peers::ReplugPlan;
use super::preflight::{Preflight, after};
use super::vmm::VmDevice;

/// The effects that a plan would have now.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Forecast {
    /// Reasons for a refusal. The plan can be carried out if there are none.
    #[cfg_attr(feature = "schema", schemars(with = "Vec<serde_json::Value>"))]
    pub blockers: Vec<Blocker>,
    /// The devices that are unplugged, in their present form.
    pub unplug: Vec<VmDevice>,
    /// The same devices in the form in which they come back.
    pub plug: Vec<VmDevice>,
    /// The other devices of virtual machines.
    pub staying: Vec<VmDevice>,
    /// How long virtual machines were without their devices in the latest transaction that unplugged some, in
    /// milliseconds; none if there was no such transaction.
    pub last_away_ms: Option<u64>,
}

impl Forecast {
    pub(super) fn new(topology: &Topology, plan: &Plan, preflight: Preflight) -> Self {
        let Preflight {
            blockers,
            assigned: unplug,
            staying,
            expose,
            ..
        } = preflight;
        let plug = if fits(&blockers) {
            let groups = after(topology, plan).groups();
            let replug = ReplugPlan {
                assigned: &unplug,
                staying: &staying,
                goals: &plan.goals,
                groups: groups.groups(),
                expose: &expose,
            };
            replug.devices()
        } else {
            // The plan was made for another host, so the form of the devices is unknown.
            unplug.clone()
        };
        Self {
            plug,
            blockers,
            unplug,
            staying,
            last_away_ms: None,
        }
    }

    /// Adds the duration of the latest transaction.
    pub(super) fn with_last(self, away: Option<Duration>) -> Self {
        let away = away.map(|away| u64::try_from(away.as_millis()).unwrap_or(u64::MAX));
        Self {
            last_away_ms: away,
            ..self
        }
    }
}

/// Whether no blocker shows that the plan was made for another host.
pub(super) fn fits(blockers: &[Blocker]) -> bool {
    let other = |blocker: &Blocker| matches!(blocker, Blocker::Stale | Blocker::Impossible { .. });
    !blockers.iter().any(other)
}
