//! PCI: one segment, its functions, and the two configuration mechanisms.

mod address;
mod assigned;
mod bus;
mod bus_usage;
mod host_bridge;
mod intx;
mod mechanism;

pub(crate) use address::Bdf;
pub(crate) use bus::{PciBus, SharedFunction};
pub(crate) use bus_usage::BusUsage;
pub(crate) use host_bridge::HostBridge;
pub(crate) use intx::{DEVICES, PINS, gsi, gsi_of_slot};
pub(crate) use mechanism::{ConfigAddressPort, decode_ecam};
