//! Messages between the daemon and its clients.

use std::collections::BTreeMap;

use iommu_group::{AcsBits, Goals, Plan, PlanOptions, Sbdf};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Answer to `ping`.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub(super) struct Ping {
    /// Release of the daemon.
    pub(super) version: &'static str,
    /// Process ID of the daemon.
    pub(super) pid: u32,
}

/// Answer to `guests`.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub(super) struct GuestList {
    /// The API sockets of the VMMs, by the names of the virtual machines.
    pub(super) guests: BTreeMap<String, String>,
}

/// Body of `plan`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PlanRequest {
    /// The goals.
    pub(super) goals: Goals,
    /// The preferred route, and accepted effects.
    #[serde(default)]
    pub(super) options: PlanOptions,
}

/// Body of `check`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Check {
    /// The plan.
    pub(crate) plan: Plan,
}

/// Body of `acs`: the ACS control of several ports.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct AcsRequest {
    /// The values of the ACS control registers, by port.
    pub(super) ports: BTreeMap<Sbdf, AcsBits>,
    /// The preferred route, and accepted effects.
    #[serde(default)]
    pub(super) options: PlanOptions,
}

/// Body of `apply`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Apply {
    /// The plan.
    pub(crate) plan: Plan,
    /// How long a guest may take to release a device, in seconds; 30 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) guest_timeout_s: Option<u64>,
}

/// Answer to `apply`, `acs` and `recover`: the transaction that was started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct StartedTransaction {
    /// ID of the transaction; null if there was nothing to do.
    pub(crate) transaction: Option<String>,
}

/// Name of the event that reports a step.
pub(crate) const STEP: &str = "transaction-step";

/// Name of the event for a transaction that could neither complete nor roll back.
pub(crate) const STUCK: &str = "transaction-stuck";
