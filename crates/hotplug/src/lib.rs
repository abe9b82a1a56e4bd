//! Lifecycle of assigned devices, and the API by which they come and go.
//!
//! [`VmConfig`] and [`DeviceConfig`] are the one description of a VM and its devices that the command line, the REST API
//! and the tests share. [`EventLog`] is what a VMM tells, to [`EventMonitor`] and to the readers of the API. With the
//! feature `server`, [`api`] has what a VMM needs to be asked by cloud-hypervisor's clients. [`regroup`] changes the IOMMU
//! groups of a live host, with the devices unplugged meanwhile.

pub mod api;
mod client;
mod descriptors;
mod device_config;
mod event;
mod gate;
mod inherited;
mod lacking;
pub mod lifecycle;
mod options;
pub mod regroup;
mod slots;
#[cfg(feature = "server")]
mod socket;
mod thread;
mod vm_config;

pub use client::{Client, ClientError, EventStream, Next, connect};
pub use device_config::DeviceConfig;
pub use event::{EVENTS, Event, EventLog, EventMonitor, MonitorError, MonitorTarget, Record};
pub use gate::{Gate, GatedCall, Passage};
pub use inherited::Inherited;
pub use options::{OptionError, Options};
pub use slots::{Register, Slot, SlotBus, SlotRegisters};
#[cfg(feature = "server")]
pub use socket::SocketError;
pub use thread::start as start_thread;
pub use vm_config::{
    ConfigError, ConsoleConfig, ConsoleError, CpusConfig, MemoryConfig, PayloadConfig,
    PlatformConfig, SerialConfig, VmConfig,
};
