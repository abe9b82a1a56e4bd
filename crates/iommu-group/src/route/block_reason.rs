//! Reasons why a request does not arrive.

use serde::{Deserialize, Serialize};

use crate::config::Unreadable;
use crate::{RootBus, Sbdf};

/// The reason why a request from one function to another does not arrive, or is not known to arrive.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, thiserror::Error,
)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "schema", schemars(rename = "Block"))]
pub enum BlockReason {
    /// The function does not exist.
    #[error("there is no {function}")]
    Missing {
        /// The address.
        function: Sbdf,
    },
    /// Initiator and target are the same function.
    #[error("a function does not reach itself over the bus")]
    Itself,
    /// The function is a port or bridge, not a device.
    #[error("{function} is a port or bridge")]
    NotADevice {
        /// The function.
        function: Sbdf,
    },
    /// The routing of a port is not known.
    #[error("the routing of {function} is unknown: {hidden}")]
    Unreadable {
        /// The port.
        function: Sbdf,
        /// Why the port is unreadable.
        hidden: Unreadable,
    },
    /// A bridge to conventional PCI is on the path. Its bus is shared, and the bridge takes ownership of requests.
    #[error("{bridge} on the path is a bridge to conventional PCI")]
    PciBridge {
        /// The bridge.
        bridge: Sbdf,
    },
    /// Egress control of a port blocks requests to another port.
    #[error("egress control of {port} blocks requests to {egress}")]
    EgressControl {
        /// The ingress port of the request.
        port: Sbdf,
        /// The port through which the request would leave.
        egress: Sbdf,
    },
    /// The request would have to turn around at a port, and the port does not forward upstream what is addressed below
    /// it.
    #[error("the request would have to turn around at {port}, which has upstream forwarding off")]
    NoUpstreamForwarding {
        /// The port.
        port: Sbdf,
    },
    /// Only the root complex could route the request, and it is not known to do so.
    #[error(
        "only through {} not known to route between devices",
        root_complexes(from, to)
    )]
    RootComplex {
        /// The root bus of the initiator.
        from: RootBus,
        /// The root bus of the target.
        to: RootBus,
    },
    /// A function provides the bus, and sends and receives for all functions on it.
    #[error("{provider} provides the bus, and no request passes it")]
    ProvidedBus {
        /// The function.
        provider: Sbdf,
    },
}

fn root_complexes(from: &RootBus, to: &RootBus) -> String {
    if from == to {
        format!("the root complex {from}, which is")
    } else {
        format!("the root complexes {from} and {to}, which are")
    }
}
