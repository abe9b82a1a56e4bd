//! PCI: the host bridge, the two configuration mechanisms, and the routing of interrupt pins.

mod host_bridge;
mod intx;
mod mechanism;

pub(crate) use host_bridge::{HOST_BRIDGE, HostBridge};
pub(crate) use intx::{DEVICES, PINS, gsi, gsi_of_slot};
pub(crate) use mechanism::{ConfigAddressPort, decode_ecam};
