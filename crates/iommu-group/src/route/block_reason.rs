//! Reasons why a request does not arrive.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::config::Unreadable;
use crate::{RootBus, Sbdf};

/// The reason why a request from one function to another does not arrive, or is not known to arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "schema", schemars(rename = "Block"))]
pub enum BlockReason {
    /// The function does not exist.
    Missing {
        /// The address.
        function: Sbdf,
    },
    /// Initiator and target are the same function.
    Itself,
    /// The function is a port or bridge, not a device.
    NotADevice {
        /// The function.
        function: Sbdf,
    },
    /// The routing of a port is not known.
    Unreadable {
        /// The port.
        function: Sbdf,
        /// Why the port is unreadable.
        hidden: Unreadable,
    },
    /// A bridge to conventional PCI is on the path. Its bus is shared, and the bridge takes ownership of requests.
    PciBridge {
        /// The bridge.
        bridge: Sbdf,
    },
    /// Egress control of a port blocks requests to another port.
    EgressControl {
        /// The ingress port of the request.
        port: Sbdf,
        /// The port through which the request would leave.
        egress: Sbdf,
    },
    /// The request would have to turn around at a port, and the port does not forward upstream what is addressed below
    /// it.
    NoUpstreamForwarding {
        /// The port.
        port: Sbdf,
    },
    /// Only the root complex could route the request, and it is not known to do so.
    RootComplex {
        /// The root bus of the initiator.
        from: RootBus,
        /// The root bus of the target.
        to: RootBus,
    },
    /// A function provides the bus, and sends and receives for all functions on it.
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
