//! Messages between the daemon and its clients.

use std::collections::BTreeMap;

use hotplug::regroup::{Action, Progress, Record};
use iommu_group::{AcsBits, Goals, Plan, PlanOptions, Sbdf};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Answer to `ping`.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub(super) struct Ping {
    /// Which release it is.
    pub(super) version: &'static str,
    /// Its process.
    pub(super) pid: u32,
}

/// Answer to `guests`.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub(super) struct Known {
    /// The virtual machines by name, each with the socket of its VMM's API.
    pub(super) guests: BTreeMap<String, String>,
}

/// Body of `plan`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    /// What is to be reached.
    pub(super) goals: Goals,
    /// What is accepted, and how.
    #[serde(default)]
    pub(super) options: PlanOptions,
}

/// Body of `check`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Check {
    /// What would be carried out.
    pub(crate) plan: Plan,
}

/// Body of `acs`: words for several ports at once.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Words {
    /// The ports, and what their ACS control registers are to hold.
    pub(super) ports: BTreeMap<Sbdf, AcsBits>,
    /// What is accepted, and how.
    #[serde(default)]
    pub(super) options: PlanOptions,
}

/// Body of `apply`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Apply {
    /// What to carry out.
    pub(crate) plan: Plan,
    /// How long a guest may take to let go of a device, in seconds; 30 unless said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) guest_timeout_s: Option<u64>,
}

/// Answer to `apply`, `acs` and `recover`: what is under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Began {
    /// The transaction's name; none if there was nothing to do.
    pub(crate) transaction: Option<String>,
}

/// Name of the event that reports a step.
pub(crate) const STEP: &str = "transaction-step";

/// Name of the event for a transaction that could neither complete nor roll back.
pub(crate) const STUCK: &str = "transaction-stuck";

/// Content of a transaction event. The first event of a transaction has the whole plan and is separate.
#[derive(Debug, Clone)]
pub(crate) struct Told {
    pub(crate) record: Record,
    pub(crate) action: Option<Action>,
}

impl Told {
    /// The properties of a progress event; `None` for progress that is reported by another event.
    pub(crate) fn properties(
        transaction: &str,
        progress: &Progress<'_>,
    ) -> Option<BTreeMap<String, String>> {
        if matches!(progress.record, Record::Begin(_)) {
            return None;
        }
        let mut properties = BTreeMap::from([
            ("transaction".to_owned(), transaction.to_owned()),
            (
                "record".to_owned(),
                serde_json::to_string(progress.record).ok()?,
            ),
        ]);
        if let Some(action) = progress.action {
            properties.insert("text".to_owned(), action.to_string());
            properties.insert("action".to_owned(), serde_json::to_string(action).ok()?);
        }
        Some(properties)
    }

    /// Parses the properties of an event.
    pub(crate) fn of(properties: &BTreeMap<String, String>) -> Option<Self> {
        let action = properties.get("action");
        Some(Self {
            record: serde_json::from_str(properties.get("record")?).ok()?,
            action: action.and_then(|action| serde_json::from_str(action).ok()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_survives_being_an_event() {
        let action = Action::Autoprobe { on: false };
        let record = Record::Failed {
            action: 3,
            error: "no".to_owned(),
        };
        let progress = Progress {
            record: &record,
            action: Some(&action),
        };
        let told = Told::of(&Told::properties("000007", &progress).unwrap()).unwrap();
        assert_eq!((told.record, told.action), (record, Some(action)));
    }
}
