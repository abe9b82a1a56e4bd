//! PCI bus of the reference VMM. That is a program, so its files are included in this crate.

#[path = "../../crates/p2p-vmm/src/pci/address.rs"]
mod address;
#[path = "../../crates/p2p-vmm/src/pci/assigned.rs"]
mod assigned;
#[path = "../../crates/p2p-vmm/src/pci/bus.rs"]
mod bus;
#[path = "../../crates/p2p-vmm/src/pci/bus_usage.rs"]
mod bus_usage;
#[path = "../../crates/p2p-vmm/src/pci/host_bridge.rs"]
mod host_bridge;
#[path = "../../crates/p2p-vmm/src/pci/mechanism.rs"]
mod mechanism;

pub(crate) use address::Bdf;
pub(crate) use bus::{PciBus, SharedFunction};
pub(crate) use host_bridge::HostBridge;
pub(crate) use mechanism::{ConfigAddressPort, decode_ecam};
