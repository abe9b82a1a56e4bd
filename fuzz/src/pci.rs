//! PCI of the reference VMM. That is a program, so its files are included in this crate.

#[path = "../../crates/p2p-vmm/src/pci/host_bridge.rs"]
mod host_bridge;
#[path = "../../crates/p2p-vmm/src/pci/mechanism.rs"]
mod mechanism;

pub(crate) use host_bridge::{HOST_BRIDGE, HostBridge};
pub(crate) use mechanism::{ConfigAddressPort, decode_ecam};
