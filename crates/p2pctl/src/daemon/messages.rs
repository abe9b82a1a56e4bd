//! Messages between the daemon and its clients.

use std::collections::BTreeMap;

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
