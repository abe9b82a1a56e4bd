//! Records of a journal.

use std::collections::BTreeMap;

use iommu_group::Plan;
use serde::{Deserialize, Serialize};

use super::action::Action;
use super::difference::Difference;
use super::snapshot::Snapshot;
use super::vmm::VmAddress;

/// Version of the records; this program reads and writes no other.
pub(super) const VERSION: u32 = 2;

/// A record, one line of a journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "record", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Record {
    /// A transaction begins. Nothing has been done yet.
    Begin(Box<Begin>),
    /// An action is about to be done.
    Started {
        /// Index of the action.
        action: usize,
    },
    /// The action was done.
    Succeeded {
        /// Index of the action.
        action: usize,
    },
    /// The action failed. Its partial effects stay.
    Failed {
        /// Index of the action.
        action: usize,
        /// The error.
        error: String,
    },
    /// Another process continues the transaction.
    Resumed {
        /// Boot ID of the current boot.
        boot: String,
    },
    /// An undo round begins.
    Undo {
        /// The actions of the round.
        actions: Vec<Action>,
    },
    /// An action of the round is about to be done.
    UndoStarted {
        /// Index in the round.
        action: usize,
    },
    /// The action was done.
    Undone {
        /// Index in the round.
        action: usize,
    },
    /// The action failed. The round continues.
    UndoFailed {
        /// Index in the round.
        action: usize,
        /// The error.
        error: String,
    },
    /// The transaction has ended.
    End {
        /// The outcome.
        outcome: Outcome,
        /// The remaining differences from the intended state.
        remains: Vec<Difference>,
    },
}

/// The first record of a transaction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Begin {
    /// Version of the records.
    pub version: u32,
    /// ID of the transaction.
    pub id: String,
    /// Boot ID of the boot in which it began.
    pub boot: String,
    /// The plan.
    pub plan: Plan,
    /// Addresses of the virtual machines whose devices are unplugged.
    #[serde(default)]
    pub vms: BTreeMap<String, VmAddress>,
    /// State of the host before the transaction.
    #[serde(rename = "baseline")]
    pub snapshot: Snapshot,
    /// The actions.
    pub actions: Vec<Action>,
    /// Index of the first action before which groups and routes are as planned.
    pub commit: usize,
}

/// The state in which a transaction left the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The planned state.
    New,
    /// The state before the transaction.
    #[default]
    Old,
    /// The kernel's state after a reboot during the transaction.
    Rebooted,
}
