//! What a journal says.

use std::collections::BTreeMap;

use iommu_group::Plan;
use serde::{Deserialize, Serialize};

use super::action::Action;
use super::baseline::Baseline;
use super::difference::Difference;
use super::vmm::VmAddress;

/// The version of the records that this program writes, and the only one that it reads.
pub(super) const VERSION: u32 = 2;

/// A record. A journal has one in each line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "record", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Record {
    /// A transaction begins; nothing has been done yet.
    Begin(Box<Begin>),
    /// An action is about to be done.
    Started {
        /// Its place in the list of actions.
        action: usize,
    },
    /// It was done.
    Succeeded {
        /// Its place.
        action: usize,
    },
    /// It failed. What it did in part stays as it is.
    Failed {
        /// Its place.
        action: usize,
        /// What happened.
        error: String,
    },
    /// Another process takes over.
    Resumed {
        /// What the kernel calls this start of the machine.
        boot: String,
    },
    /// A round of undoing begins.
    Undo {
        /// What is to be done.
        actions: Vec<Action>,
    },
    /// An action of the round is about to be done.
    UndoStarted {
        /// Its place in the round.
        action: usize,
    },
    /// It was done.
    Undone {
        /// Its place.
        action: usize,
    },
    /// It failed; the round goes on without it.
    UndoFailed {
        /// Its place.
        action: usize,
        /// What happened.
        error: String,
    },
    /// The transaction is over.
    End {
        /// How.
        outcome: Outcome,
        /// What is not as it was, where it should be.
        remains: Vec<Difference>,
    },
}

/// How a transaction begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Begin {
    /// Version of the records.
    pub version: u32,
    /// Name of the transaction.
    pub id: String,
    /// What the kernel calls this start of the machine.
    pub boot: String,
    /// The plan.
    pub plan: Plan,
    /// How the virtual machines are reached that devices are taken from.
    #[serde(default)]
    pub vms: BTreeMap<String, VmAddress>,
    /// What the host was like.
    pub baseline: Baseline,
    /// What is to be done.
    pub actions: Vec<Action>,
    /// The first action before which groups and routes are as they shall be.
    pub commit: usize,
}

/// The state that a transaction left the host in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// What was planned.
    New,
    /// What was before.
    #[default]
    Old,
    /// What the kernel makes of it at boot: the machine was started anew meanwhile.
    Rebooted,
}
