//! What carrying out a plan would mean now, without doing it.

use std::time::Duration;

use iommu_group::{Plan, Topology};
use serde::{Deserialize, Serialize};

use super::blocker::Blocker;
use super::peers::Homecoming;
use super::preflight::{Preflight, after};
use super::vmm::Assigned;

/// What carrying out a plan would mean now.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Forecast {
    /// What speaks against it. It is refused if there is anything.
    #[cfg_attr(feature = "schema", schemars(with = "Vec<serde_json::Value>"))]
    pub blockers: Vec<Blocker>,
    /// The devices that virtual machines lose meanwhile, as they have them now.
    pub unplug: Vec<Assigned>,
    /// The same devices as they come back.
    pub plug: Vec<Assigned>,
    /// The other devices of virtual machines.
    pub staying: Vec<Assigned>,
    /// For how many milliseconds virtual machines were without their devices when they lost some last; none if they
    /// never have.
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
            let homecoming = Homecoming {
                assigned: &unplug,
                staying: &staying,
                goals: &plan.goals,
                groups: groups.groups(),
                expose: &expose,
            };
            homecoming.devices()
        } else {
            // It is about another host: who comes back how cannot be told.
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

    /// The same with the time that it took last.
    pub(super) fn with_last(self, away: Option<Duration>) -> Self {
        let away = away.map(|away| u64::try_from(away.as_millis()).unwrap_or(u64::MAX));
        Self {
            last_away_ms: away,
            ..self
        }
    }
}

/// Whether nothing says that a plan is about another host than this.
pub(super) fn fits(blockers: &[Blocker]) -> bool {
    let other = |blocker: &Blocker| matches!(blocker, Blocker::Stale | Blocker::Impossible { .. });
    !blockers.iter().any(other)
}
