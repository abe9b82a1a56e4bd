//! The REST API of a VMM, in cloud-hypervisor's dialect: HTTP on a unix socket, below `/api/v1/`.
//!
//! ```text
//! clients ──▶ api thread (HTTP, limits, JSON) ──Call──▶ main thread of the VMM, which owns the VM
//!                              ▲                            │
//!                              └──────────── Reply ─────────┘
//! ```
//! The API thread makes no decisions: the owner of the VM answers one `Call` after the other. A VMM needs the feature
//! `server`; a client needs only the [types](VmInfo). The feature `schema` adds the OpenAPI
//! description.
//!
//! [`VmConfig`] and [`DeviceConfig`] are the configuration types of the command line, the REST API and the tests.
//! [`EventLog`] holds the events of a VMM for [`EventMonitor`] and the clients of the API.

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
#[cfg(all(test, feature = "server"))]
mod fake_vmm;
mod inherited_fd;
mod options;
mod p2p;
mod request_filter;
#[cfg(feature = "server")]
mod server;
#[cfg(feature = "server")]
mod socket;
mod thread;
mod types;
mod unsupported;
mod vm_config;
#[cfg(all(feature = "server", feature = "schema"))]
mod vmm;

#[cfg(feature = "server")]
pub use call::{Call, CallQueue, Counters, Reply};
pub use client::{Client, ClientError, EventStream, Next, connect};
pub use device_config::{ConfigError, DeviceConfig};
#[cfg(all(feature = "server", feature = "schema"))]
pub use document::{CallSpec, Description};
pub use event::{
    Departure, EVENTS, Event, EventLog, EventMonitor, MonitorError, MonitorTarget, Record,
};
#[cfg(feature = "server")]
pub use failure::Failure;
pub use inherited_fd::InheritedFd;
pub use options::{OptionError, Options};
pub use p2p::{
    P2pBackend, P2pDomain, P2pExposure, P2pInfo, P2pInterface, P2pMember, P2pMemory, P2pRoute,
    P2pVerdict, P2pWindow, UNSHARED_TRANSFERS,
};
pub use request_filter::{Decision, FilteredCall, RequestFilter};
#[cfg(feature = "server")]
pub use server::{ApiCall, ApiServer, Handler, HttpMethod, ServerError};
#[cfg(feature = "server")]
pub use socket::SocketError;
pub use thread::start as start_thread;
pub use types::{
    BarKind, DeviceNode, DeviceTree, P2pWindows, PciDevice, RemoveDevice, Resource, VmInfo,
    VmState, VmmPing,
};
pub use vm_config::{
    ConsoleConfig, ConsoleError, CpusConfig, MemoryConfig, PayloadConfig, PlatformConfig,
    SerialConfig, VmConfig,
};
#[cfg(all(feature = "server", feature = "schema"))]
pub use vmm::openapi;

/// Runs the example of the README as a test.
#[cfg(all(doctest, feature = "server"))]
#[doc = include_str!("../README.md")]
struct Readme;
