//! Reasons why goals cannot be reached.

use std::fmt;

use serde::Serialize;

use crate::{AcsBits, AcsDeficiency, Sbdf, Unreadable};

/// The reason why a goal cannot be reached at run time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Infeasible {
    /// No function has a group: no IOMMU is in use.
    NoIommu,
    /// No goal was given.
    NoGoal,
    /// A set to be joined has only one function.
    Alone {
        /// The function.
        function: Sbdf,
    },
    /// The function does not exist.
    Missing {
        /// The address.
        function: Sbdf,
    },
    /// The function is a port or bridge, which cannot be joined or isolated by itself.
    NotADevice {
        /// The function.
        function: Sbdf,
    },
    /// The function has no group: no IOMMU translates its requests.
    NoGroup {
        /// The function.
        function: Sbdf,
    },
    /// The function is to be both joined and isolated.
    Contradiction {
        /// The function.
        function: Sbdf,
    },
    /// The type or the ACS of these functions could not be read.
    Unreadable {
        /// The functions.
        functions: Vec<Sbdf>,
        /// Why they are unreadable.
        hidden: Unreadable,
    },
    /// Groups depend on aliases of these functions that are kept in device memory and are unknown.
    Doubtful {
        /// The functions.
        functions: Vec<Sbdf>,
    },
    /// The two functions share only the root complex.
    DifferentRootPorts {
        /// The first function.
        a: Sbdf,
        /// The second function.
        b: Sbdf,
    },
    /// A virtual function cannot be removed and found again.
    VirtualFunction {
        /// The function.
        function: Sbdf,
        /// Its physical function.
        physical: Sbdf,
    },
    /// No port above can be opened: no ACS control that Linux requires can be cleared safely.
    CannotOpen {
        /// The functions to be joined.
        functions: Vec<Sbdf>,
        /// The lowest bridge above all of them.
        anchor: Sbdf,
        /// The ports that isolate the functions below the bridge.
        ports: Vec<Sbdf>,
    },
    /// The function stays in a group with others, whichever functions are removed.
    Inseparable {
        /// The function.
        function: Sbdf,
        /// The functions that it stays with.
        from: Vec<Sbdf>,
        /// A port or function that Linux does not consider as isolating, if that is the cause.
        because: Option<(Sbdf, AcsDeficiency)>,
    },
    /// One goal prevents another.
    Conflict {
        /// Functions that should be in one group and are not, or that should be separate and are not.
        functions: Vec<Sbdf>,
    },
    /// The function is not a root port or downstream port. ACS can be set at run time only on these; the kernel
    /// repeatedly resets the ACS of other functions.
    NotAPort {
        /// The function.
        function: Sbdf,
    },
    /// The port has no ACS.
    NoAcs {
        /// The port.
        port: Sbdf,
    },
    /// The port does not implement these bits.
    NotImplemented {
        /// The port.
        port: Sbdf,
        /// The bits.
        bits: AcsBits,
    },
}

struct List<'a>(&'a [Sbdf]);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, sbdf) in self.0.iter().enumerate() {
            let gap = if index == 0 { "" } else { ", " };
            write!(f, "{gap}{sbdf}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Infeasible {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoIommu => f.write_str("there are no IOMMU groups: no IOMMU is in use"),
            Self::NoGoal => f.write_str("nothing to do: no goal was given"),
            Self::Alone { function } => write!(
                f,
                "{function} alone cannot be joined: name two functions or more"
            ),
            Self::Missing { function } => write!(f, "there is no {function}"),
            Self::NotADevice { function } => write!(
                f,
                "{function} is a port or bridge; name the devices below it"
            ),
            Self::NoGroup { function } => {
                write!(f, "{function} has no IOMMU group: no IOMMU serves it")
            }
            Self::Contradiction { function } => {
                write!(f, "{function} is to be both joined and isolated")
            }
            Self::Unreadable {
                functions,
                hidden: Unreadable::Unprivileged,
            } => write!(
                f,
                "the ACS of {} is not readable without root: run as root",
                List(functions)
            ),
            Self::Unreadable { functions, hidden } => {
                write!(f, "{} cannot be read: {hidden}", List(functions))
            }
            Self::Doubtful { functions } => write!(
                f,
                "groups depend on what {} keep in their own memory, which cannot be seen from here",
                List(functions)
            ),
            Self::DifferentRootPorts { a, b } => write!(
                f,
                "{a} and {b} are below different root ports: functions can only be joined below a common port"
            ),
            Self::VirtualFunction { function, physical } => write!(
                f,
                "{function} is a virtual function: no scan finds it again, {physical} would have to make it anew"
            ),
            Self::CannotOpen {
                functions,
                anchor,
                ports,
            } => write!(
                f,
                "{} stay apart below {anchor}: Linux takes {} for isolating, and it has no control that could be \
                 switched off for a moment without danger to others",
                List(functions),
                List(ports)
            ),
            Self::Inseparable {
                function,
                from,
                because: Some((culprit, lack)),
            } => write!(
                f,
                "{function} cannot be separated from {}: {culprit} {lack}",
                List(from)
            ),
            Self::Inseparable {
                function,
                from,
                because: None,
            } => write!(f, "{function} cannot be separated from {}", List(from)),
            Self::Conflict { functions } => {
                write!(
                    f,
                    "the goals get in each other's way at {}",
                    List(functions)
                )
            }
            Self::NotAPort { function } => write!(
                f,
                "{function} is no root port or downstream port: its ACS is set anew by the kernel at every reset; \
                 use pci=config_acs= at boot"
            ),
            Self::NoAcs { port } => write!(f, "{port} has no ACS"),
            Self::NotImplemented { port, bits } => {
                write!(f, "{port} does not implement ACS {bits}")
            }
        }
    }
}

/// Goals that cannot be reached at run time, with all reasons.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
pub struct Refusal {
    /// The reasons; at least one.
    pub reasons: Vec<Infeasible>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, reason) in self.reasons.iter().enumerate() {
            let gap = if index == 0 { "" } else { "; " };
            write!(f, "{gap}{reason}")?;
        }
        Ok(())
    }
}

impl From<Infeasible> for Refusal {
    fn from(reason: Infeasible) -> Self {
        Self {
            reasons: vec![reason],
        }
    }
}
