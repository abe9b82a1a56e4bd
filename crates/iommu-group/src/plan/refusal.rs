//! Reasons why goals cannot be reached.

use std::fmt;

use serde::Serialize;

use crate::sbdf::List;
use crate::{AcsBits, AcsDeficiency, Sbdf, Unreadable};

/// The reason why a goal cannot be reached at run time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(rename_all = "kebab-case")]
pub enum Infeasible {
    /// No function has a group: no IOMMU is in use.
    #[error("there are no IOMMU groups: no IOMMU is in use")]
    NoIommu,
    /// No goal was given.
    #[error("nothing to do: no goal was given")]
    NoGoal,
    /// A set to be joined has only one function.
    #[error("{function} alone cannot be joined: name two functions or more")]
    Alone {
        /// The function.
        function: Sbdf,
    },
    /// The function does not exist.
    #[error("there is no {function}")]
    Missing {
        /// The address.
        function: Sbdf,
    },
    /// The function is a port or bridge, which cannot be joined or isolated by itself.
    #[error("{function} is a port or bridge; name the devices below it")]
    NotADevice {
        /// The function.
        function: Sbdf,
    },
    /// The function has no group: no IOMMU translates its requests.
    #[error("{function} has no IOMMU group: no IOMMU translates its requests")]
    NoGroup {
        /// The function.
        function: Sbdf,
    },
    /// The function is to be both joined and isolated.
    #[error("{function} is to be both joined and isolated")]
    Contradiction {
        /// The function.
        function: Sbdf,
    },
    /// The type or the ACS of these functions could not be read.
    #[error("{}", Unread(functions, *hidden))]
    Unreadable {
        /// The functions.
        functions: Vec<Sbdf>,
        /// Why they are unreadable.
        hidden: Unreadable,
    },
    /// Groups depend on aliases of these functions that are kept in device memory and are unknown.
    #[error(
        "groups depend on requester IDs in the memory of {}, which cannot be read",
        List(functions)
    )]
    Doubtful {
        /// The functions.
        functions: Vec<Sbdf>,
    },
    /// The two functions share only the root complex.
    #[error(
        "{a} and {b} are below different root ports: functions can only be joined below a common port"
    )]
    DifferentRootPorts {
        /// The first function.
        a: Sbdf,
        /// The second function.
        b: Sbdf,
    },
    /// A virtual function cannot be removed and found again.
    #[error(
        "{function} is a virtual function: a rescan does not find it, only {physical} can create it again"
    )]
    VirtualFunction {
        /// The function.
        function: Sbdf,
        /// Its physical function.
        physical: Sbdf,
    },
    /// No port above can be opened: no ACS control that Linux requires can be cleared safely.
    #[error(
        "{} cannot be joined below {anchor}: Linux regards {} as isolating, and no ACS control there can be cleared \
         safely during a rescan",
        List(functions),
        List(ports)
    )]
    CannotOpen {
        /// The functions to be joined.
        functions: Vec<Sbdf>,
        /// The lowest bridge above all of them.
        anchor: Sbdf,
        /// The ports that isolate the functions below the bridge.
        ports: Vec<Sbdf>,
    },
    /// The function stays in a group with others, whichever functions are removed.
    #[error(
        "{function} cannot be separated from {}{}",
        List(from),
        Because(because)
    )]
    Inseparable {
        /// The function.
        function: Sbdf,
        /// The functions that it stays with.
        from: Vec<Sbdf>,
        /// A port or function that Linux does not consider as isolating, if that is the cause.
        because: Option<(Sbdf, AcsDeficiency)>,
    },
    /// One goal prevents another.
    #[error("the goals conflict at {}", List(functions))]
    Conflict {
        /// Functions that should be in one group and are not, or that should be separate and are not.
        functions: Vec<Sbdf>,
    },
    /// The function is not a root port or downstream port. ACS can be set at run time only on these; the kernel
    /// repeatedly resets the ACS of other functions.
    #[error(
        "{function} is not a root port or downstream port: the kernel sets its ACS again at every reset; use \
         pci=config_acs= at boot"
    )]
    NotAPort {
        /// The function.
        function: Sbdf,
    },
    /// The port has no ACS.
    #[error("{port} has no ACS")]
    NoAcs {
        /// The port.
        port: Sbdf,
    },
    /// The port does not implement these bits.
    #[error("{port} does not implement ACS {bits}")]
    NotImplemented {
        /// The port.
        port: Sbdf,
        /// The bits.
        bits: AcsBits,
    },
}

struct Unread<'a>(&'a [Sbdf], Unreadable);

impl fmt::Display for Unread<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(functions, hidden) = self;
        let functions = List(functions);
        match hidden {
            Unreadable::Unprivileged => write!(
                f,
                "the ACS of {functions} is not readable without root: run as root"
            ),
            _ => write!(f, "{functions} cannot be read: {hidden}"),
        }
    }
}

struct Because<'a>(&'a Option<(Sbdf, AcsDeficiency)>);

impl fmt::Display for Because<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some((culprit, lack)) => write!(f, ": {culprit} {lack}"),
            None => Ok(()),
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
