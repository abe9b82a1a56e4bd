//! The steps of a plan.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::{AcsBits, EgressVector, GroupModel, Sbdf};

/// Why an ACS word is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Purpose {
    /// So that requests no longer go straight.
    CloseRoute,
    /// So that Linux groups what it adds in the next rescan.
    OpenForRescan,
    /// To have it as it was before that.
    Restore,
    /// So that requests go straight.
    OpenRoute,
    /// Because it was asked for.
    Asked,
}

/// A step of a plan. Whoever carries it out stops if the machine is not as the step expects it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Step {
    /// Drivers and guests let go of the devices; nothing is left bound to them that could start requests.
    Unplug {
        /// The devices.
        functions: BTreeSet<Sbdf>,
    },
    /// `power/control` of the ports is set to `on`: a port that sleeps gets the kernel's ACS word when it wakes.
    KeepAwake {
        /// The ports, and those above them.
        ports: BTreeSet<Sbdf>,
    },
    /// The ACS control register is written.
    SetAcs {
        /// The port.
        port: Sbdf,
        /// What it holds before.
        from: AcsBits,
        /// What it holds then.
        to: AcsBits,
        /// Why.
        purpose: Purpose,
    },
    /// The egress control vector is written.
    SetEgress {
        /// The port.
        port: Sbdf,
        /// What it holds before.
        from: EgressVector,
        /// What it holds then.
        to: EgressVector,
    },
    /// The functions and all below them are removed from the kernel.
    Remove {
        /// The functions.
        functions: BTreeSet<Sbdf>,
    },
    /// The buses below the ports are scanned; what was removed is found again, and the kernel sets up its ACS.
    Rescan {
        /// The ports.
        below: BTreeSet<Sbdf>,
    },
    /// The kernel's groups are compared with those predicted; if they differ the plan is undone.
    CheckGroups {
        /// The groups of all functions below the root ports concerned.
        expect: Vec<Vec<Sbdf>>,
    },
    /// The devices are given back.
    Replug {
        /// The devices.
        functions: BTreeSet<Sbdf>,
    },
}

impl Step {
    /// Does to a model what the step does to the machine.
    pub fn apply(&self, model: &mut GroupModel<'_>) {
        match self {
            Self::SetAcs { port, to, .. } => model.set_acs_control(*port, *to),
            Self::SetEgress { port, to, .. } => model.set_egress(*port, *to),
            Self::Remove { functions } => functions
                .iter()
                .for_each(|function| model.remove(*function)),
            Self::Rescan { .. } => model.rescan(),
            Self::Unplug { .. }
            | Self::KeepAwake { .. }
            | Self::CheckGroups { .. }
            | Self::Replug { .. } => {}
        }
    }
}
