//! Steps of a plan.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::{AcsBits, EgressVector, GroupModel, Sbdf};

/// The purpose of an ACS control write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Purpose {
    /// Requests no longer go directly.
    CloseRoute,
    /// Linux groups the functions that it adds in the next rescan.
    OpenForRescan,
    /// The value from before the rescan is restored.
    Restore,
    /// Requests go directly.
    OpenRoute,
    /// The value was requested.
    Asked,
}

/// A step of a plan. The executor stops if the state of the machine is not the one that the step expects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Step {
    /// Drivers and guests release the devices. No driver that could start requests stays bound to them.
    Unplug {
        /// The devices.
        functions: BTreeSet<Sbdf>,
    },
    /// Set `power/control` of the ports to `on`: when a sleeping port wakes, the kernel sets its own ACS control.
    KeepAwake {
        /// The ports, and those above them.
        ports: BTreeSet<Sbdf>,
    },
    /// Write the ACS control register.
    SetAcs {
        /// The port.
        port: Sbdf,
        /// The value before the write.
        from: AcsBits,
        /// The value to write.
        to: AcsBits,
        /// The purpose of the write.
        purpose: Purpose,
    },
    /// Write the egress control vector.
    SetEgress {
        /// The port.
        port: Sbdf,
        /// The value before the write.
        from: EgressVector,
        /// The value to write.
        to: EgressVector,
    },
    /// Remove the functions and all functions below them from the kernel.
    Remove {
        /// The functions.
        functions: BTreeSet<Sbdf>,
    },
    /// Scan the buses below the ports. The kernel finds the removed functions again and sets up their ACS.
    Rescan {
        /// The ports.
        below: BTreeSet<Sbdf>,
    },
    /// Compare the kernel's groups with the predicted ones. If they differ, the plan is undone.
    CheckGroups {
        /// The groups of all functions below the root ports concerned.
        expect: Vec<Vec<Sbdf>>,
    },
    /// Return the devices to their drivers and guests.
    Replug {
        /// The devices.
        functions: BTreeSet<Sbdf>,
    },
}

impl Step {
    /// The functions that the step removes, without those below them.
    pub(super) fn removed(&self) -> impl Iterator<Item = &Sbdf> {
        match self {
            Self::Remove { functions } => Some(functions),
            _ => None,
        }
        .into_iter()
        .flatten()
    }

    /// The port whose ACS registers the step writes.
    pub(super) fn written(&self) -> Option<Sbdf> {
        match self {
            Self::SetAcs { port, .. } | Self::SetEgress { port, .. } => Some(*port),
            _ => None,
        }
    }

    /// Applies to a model the change that the step makes to the machine.
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
