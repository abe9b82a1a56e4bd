//! The REST API of a VMM, in cloud-hypervisor's dialect: HTTP on a unix socket, below `/api/v1/`.
//!
//! ```text
//! clients ──▶ api thread (HTTP, limits, JSON) ──Call──▶ main thread of the VMM, which owns the VM
//!                              ▲                            │
//!                              └──────────── Reply ─────────┘
//! ```
//! The thread of the API decides nothing: each request becomes a [`Call`] that the owner of the VM answers, one after the
//! other. A client needs the [types](VmInfo) only; a VMM needs the feature `server`. The feature `schema` describes the types,
//! for the OpenAPI document.

#[cfg(feature = "server")]
mod call;
#[cfg(all(feature = "server", feature = "schema"))]
mod document;
#[cfg(feature = "server")]
mod failure;
mod p2p;
#[cfg(all(test, feature = "server"))]
pub(crate) mod puppet;
#[cfg(feature = "server")]
mod server;
mod types;
#[cfg(all(feature = "server", feature = "schema"))]
mod vmm;

#[cfg(feature = "server")]
pub use call::{Call, CallQueue, Counters, Reply};
#[cfg(all(feature = "server", feature = "schema"))]
pub use document::{CallSpec, Description};
#[cfg(feature = "server")]
pub use failure::Failure;
pub use p2p::{
    P2pBackend, P2pDomain, P2pExposure, P2pInfo, P2pInterface, P2pMember, P2pMemory, P2pRoute,
    P2pVerdict, P2pWindow, UNSHARED_TRANSFERS,
};
#[cfg(feature = "server")]
pub use server::{ApiServer, Desk, Inquiry, ServerError, Verb};
pub use types::{
    BarKind, DeviceNode, DeviceTree, P2pWindows, PciDevice, RemoveDevice, Resource, VmInfo,
    VmState, VmmPing,
};
#[cfg(all(feature = "server", feature = "schema"))]
pub use vmm::openapi;
