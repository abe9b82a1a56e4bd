//! The REST API of a VMM, in cloud-hypervisor's dialect: HTTP on a unix socket, below `/api/v1/`.
//!
//! ```text
//! clients ──▶ api thread (HTTP, limits, JSON) ──Call──▶ main thread of the VMM, which owns the VM
//!                              ▲                            │
//!                              └──────────── Reply ─────────┘
//! ```
//! The thread of the API decides nothing: each request becomes a [`Call`] that the owner of the VM answers, one after the
//! other. A client needs the [types](VmInfo) only; a VMM needs the feature `server`. The feature `schema` describes
//! the types, for the OpenAPI document.
//!
//! [`VmConfig`] and [`DeviceConfig`] are the one description of a VM and its devices that the command line, the REST API
//! and the tests share. [`EventLog`] is what a VMM tells, to [`EventMonitor`] and to the readers of the API.

#[cfg(feature = "server")]
mod call;
mod client;
mod descriptors;
mod device_config;
#[cfg(all(feature = "server", feature = "schema"))]
mod document;
mod event;
#[cfg(feature = "server")]
mod failure;
mod gate;
mod inherited;
mod lacking;
mod options;
mod p2p;
#[cfg(all(test, feature = "server"))]
mod puppet;
#[cfg(feature = "server")]
mod server;
#[cfg(feature = "server")]
mod socket;
mod thread;
mod types;
mod vm_config;
#[cfg(all(feature = "server", feature = "schema"))]
mod vmm;

#[cfg(feature = "server")]
pub use call::{Call, CallQueue, Counters, Reply};
pub use client::{Client, ClientError, EventStream, Next, connect};
pub use device_config::DeviceConfig;
#[cfg(all(feature = "server", feature = "schema"))]
pub use document::{CallSpec, Description};
pub use event::{
    Departure, EVENTS, Event, EventLog, EventMonitor, MonitorError, MonitorTarget, Record,
};
#[cfg(feature = "server")]
pub use failure::Failure;
pub use gate::{Gate, GatedCall, Passage};
pub use inherited::Inherited;
pub use options::{OptionError, Options};
pub use p2p::{
    P2pBackend, P2pDomain, P2pExposure, P2pInfo, P2pInterface, P2pMember, P2pMemory, P2pRoute,
    P2pVerdict, P2pWindow, UNSHARED_TRANSFERS,
};
#[cfg(feature = "server")]
pub use server::{ApiServer, Desk, Inquiry, ServerError, Verb};
#[cfg(feature = "server")]
pub use socket::SocketError;
pub use thread::start as start_thread;
pub use types::{
    BarKind, DeviceNode, DeviceTree, P2pWindows, PciDevice, RemoveDevice, Resource, VmInfo,
    VmState, VmmPing,
};
pub use vm_config::{
    ConfigError, ConsoleConfig, ConsoleError, CpusConfig, MemoryConfig, PayloadConfig,
    PlatformConfig, SerialConfig, VmConfig,
};
#[cfg(all(feature = "server", feature = "schema"))]
pub use vmm::openapi;

/// Runs the example of the README as a test.
#[cfg(all(doctest, feature = "server"))]
#[doc = include_str!("../README.md")]
struct Readme;
