//! Actions: the smallest journalled steps of a transaction.

use std::collections::BTreeMap;
use std::fmt;

use iommu_group::{AcsBits, EgressVector, Sbdf};
use serde::{Deserialize, Serialize};

use super::vmm::VmDevice;

/// An action. Actions are idempotent: repeating one, or completing one that was interrupted, has the same result.
///
/// Functions are named by their addresses at the start of the transaction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Action {
    /// Unplug devices, all at the same time. First their peer mappings are closed.
    Unplug {
        /// The devices.
        devices: Vec<VmDevice>,
    },
    /// Set whether the kernel binds drivers to functions that it finds.
    Autoprobe {
        /// The value.
        on: bool,
    },
    /// Unbind a function from its driver.
    Unbind {
        /// The function.
        function: Sbdf,
    },
    /// Set attributes of a function.
    Attributes {
        /// The function.
        function: Sbdf,
        /// Value by name.
        values: BTreeMap<String, String>,
    },
    /// Write the ACS control register of a port.
    Acs {
        /// The port.
        port: Sbdf,
        /// Offset of the register in configuration space.
        at: u16,
        /// Value that the register must have before; any if absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        from: Option<AcsBits>,
        /// The new value.
        to: AcsBits,
    },
    /// Write the egress control vector of a port.
    Egress {
        /// The port.
        port: Sbdf,
        /// Offset of the vector in configuration space.
        at: u16,
        /// The new value.
        to: EgressVector,
    },
    /// Remove a function and everything below it.
    Remove {
        /// The function.
        function: Sbdf,
    },
    /// Scan the bus below a bridge, and all buses below that.
    Rescan {
        /// The bridge.
        below: Sbdf,
    },
    /// Bind a driver to a function.
    Bind {
        /// The function.
        function: Sbdf,
        /// The driver.
        driver: String,
        /// Value of the function's `driver_override` afterwards.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        then_override: String,
    },
    /// Compare the kernel's groups and the ACS control registers with the expected ones.
    Check {
        /// The expected groups.
        groups: Vec<Vec<Sbdf>>,
        /// The expected registers.
        words: BTreeMap<Sbdf, AcsBits>,
    },
    /// Plug devices back into their virtual machines.
    Plug {
        /// The devices.
        devices: Vec<VmDevice>,
    },
}

/// Items, separated by spaces.
pub(super) fn list<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    let words: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    words.join(" ")
}

impl fmt::Display for Action {
    /// The action, in the imperative.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unplug { devices } => {
                write!(f, "unplug {}", list(devices.iter().map(|d| d.function)))
            }
            Self::Autoprobe { on: false } => f.write_str("disable driver autoprobe"),
            Self::Autoprobe { on: true } => f.write_str("enable driver autoprobe"),
            Self::Unbind { function } => write!(f, "unbind {function}"),
            Self::Attributes { function, values } => match values.get("power/control") {
                Some(value) if values.len() == 1 && value == "on" => {
                    write!(f, "keep {function} awake")
                }
                Some(_) if values.len() == 1 => write!(f, "allow {function} to sleep"),
                _ => write!(f, "set {} of {function}", list(values.keys())),
            },
            Self::Acs { port, from, to, .. } => match from {
                Some(from) => write!(f, "{port}  ACS {from:04x} → {to:04x}"),
                None => write!(f, "{port}  ACS {to:04x}"),
            },
            Self::Egress { port, .. } => write!(f, "{port}  egress control vector"),
            Self::Remove { function } => write!(f, "remove {function}"),
            Self::Rescan { below } => write!(f, "rescan below {below}"),
            Self::Bind {
                function, driver, ..
            } => write!(f, "bind {function} to {driver}"),
            Self::Check { .. } => f.write_str("check groups and ACS"),
            Self::Plug { devices } => {
                write!(f, "plug {}", list(devices.iter().map(|d| d.function)))
            }
        }
    }
}
