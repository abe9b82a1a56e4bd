//! Why a request does not arrive.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::config::Unreadable;
use crate::{RootBus, Sbdf};

/// Why a request from one function to another does not arrive, or cannot be counted on to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "schema", schemars(rename = "Block"))]
pub enum BlockReason {
    /// There is no such function.
    Missing {
        /// The address.
        function: Sbdf,
    },
    /// A function does not reach itself this way.
    Itself,
    /// The function is a port or bridge, not a device.
    NotADevice {
        /// The function.
        function: Sbdf,
    },
    /// What a port does cannot be told.
    Unreadable {
        /// The port.
        function: Sbdf,
        /// Why not.
        hidden: Unreadable,
    },
    /// A bridge to conventional PCI is in the way: its bus is shared and it takes requests over as its own.
    PciBridge {
        /// The bridge.
        bridge: Sbdf,
    },
    /// Egress control of a port blocks requests to another one.
    EgressControl {
        /// The port at which the request arrives.
        port: Sbdf,
        /// The port at which it would leave.
        egress: Sbdf,
    },
    /// A request would have to turn around at a port that does not forward upstream what is addressed below it.
    NoUpstreamForwarding {
        /// The port.
        port: Sbdf,
    },
    /// Only the root complex could route it, and it is not known to.
    RootComplex {
        /// The root bus of the sender.
        from: RootBus,
        /// The root bus of the receiver.
        to: RootBus,
    },
    /// The bus is provided by a function that sends and receives for all that is on it.
    ProvidedBus {
        /// The function.
        provider: Sbdf,
    },
}

impl fmt::Display for BlockReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { function } => write!(f, "there is no {function}"),
            Self::Itself => f.write_str("a function does not reach itself over the bus"),
            Self::NotADevice { function } => write!(f, "{function} is a port or bridge"),
            Self::Unreadable { function, hidden } => {
                write!(f, "what {function} does is not known: {hidden}")
            }
            Self::PciBridge { bridge } => {
                write!(f, "{bridge} is a bridge to conventional PCI, in the way")
            }
            Self::EgressControl { port, egress } => {
                write!(f, "egress control of {port} blocks requests to {egress}")
            }
            Self::NoUpstreamForwarding { port } => write!(
                f,
                "the request would have to turn around at {port}, which has no upstream forwarding switched on"
            ),
            Self::RootComplex { from, to } if from == to => {
                write!(
                    f,
                    "only through the root complex {from}, which is not known to route between devices"
                )
            }
            Self::RootComplex { from, to } => write!(
                f,
                "only through the root complexes {from} and {to}, which are not known to route between devices"
            ),
            Self::ProvidedBus { provider } => {
                write!(
                    f,
                    "{provider} provides the bus and stands between it and all others"
                )
            }
        }
    }
}
