//! What a transaction does to a host, in the smallest steps that are journalled.

use std::collections::BTreeMap;
use std::fmt;

use iommu_group::{AcsBits, EgressVector, Sbdf};
use serde::{Deserialize, Serialize};

use super::vmm::Assigned;

/// An action. Each one sees to it that something is so: doing it twice, or after it was done half, is as good as once.
///
/// Functions are named by the addresses that they had when the transaction began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Action {
    /// Guests let go of devices, all at the same time; first their peers lose the windows to them.
    Unplug {
        /// The devices.
        devices: Vec<Assigned>,
    },
    /// Whether the kernel gives what a scan finds to drivers.
    Autoprobe {
        /// Whether it does.
        on: bool,
    },
    /// No driver is bound to a function.
    Unbind {
        /// The function.
        function: Sbdf,
    },
    /// Attributes of a function have these values.
    Attributes {
        /// The function.
        function: Sbdf,
        /// Name and value of each.
        values: BTreeMap<String, String>,
    },
    /// The ACS control register of a port is written.
    Acs {
        /// The port.
        port: Sbdf,
        /// Where the register is in configuration space.
        at: u16,
        /// What it must hold before; anything if absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        from: Option<AcsBits>,
        /// What it holds then.
        to: AcsBits,
    },
    /// The egress control vector of a port is written.
    Egress {
        /// The port.
        port: Sbdf,
        /// Where the vector is in configuration space.
        at: u16,
        /// What it holds then.
        to: EgressVector,
    },
    /// A function and all below it are removed from the kernel.
    Remove {
        /// The function.
        function: Sbdf,
    },
    /// The bus below a bridge is scanned, and all below that.
    Rescan {
        /// The bridge.
        below: Sbdf,
    },
    /// A driver is bound to a function.
    Bind {
        /// The function.
        function: Sbdf,
        /// The driver.
        driver: String,
        /// The function's `driver_override` in the end.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        then_override: String,
    },
    /// The kernel's groups and the ACS control registers are read and compared.
    Check {
        /// The groups.
        groups: Vec<Vec<Sbdf>>,
        /// The registers.
        words: BTreeMap<Sbdf, AcsBits>,
    },
    /// Virtual machines get devices back.
    Plug {
        /// The devices.
        devices: Vec<Assigned>,
    },
}

fn list<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    let words: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    words.join(" ")
}

impl fmt::Display for Action {
    /// What is done, as an order.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unplug { devices } => {
                write!(f, "unplug {}", list(devices.iter().map(|d| d.function)))
            }
            Self::Autoprobe { on: false } => f.write_str("keep drivers from what comes back"),
            Self::Autoprobe { on: true } => f.write_str("let drivers take what is found again"),
            Self::Unbind { function } => write!(f, "take {function} from its driver"),
            Self::Attributes { function, values } => match values.get("power/control") {
                Some(value) if values.len() == 1 && value == "on" => {
                    write!(f, "keep {function} awake")
                }
                Some(_) if values.len() == 1 => write!(f, "let {function} sleep again"),
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
            } => write!(f, "give {function} to {driver}"),
            Self::Check { .. } => f.write_str("check groups and ACS"),
            Self::Plug { devices } => {
                write!(f, "plug {}", list(devices.iter().map(|d| d.function)))
            }
        }
    }
}
