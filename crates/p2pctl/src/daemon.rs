//! The host's daemon: the only process that changes groups while virtual machines run.
//!
//! ```text
//! p2pctl apply ──REST──▶ calls ──▶ changes ──▶ transaction (one at a time, a thread) ──▶ sysfs
//!                                     │              └──▶ VMMs, through their APIs
//! p2pctl watch ◀──events── event log◀┴── drift (changes to the host by others)
//! ```
//!
//! The daemon can be killed at any time: an unfinished transaction is in the journal, and the next daemon completes it
//! or rolls it back.

mod calls;
#[cfg(test)]
mod document;
mod drift;
mod guests;
mod messages;
mod ready;
mod transactions;
mod uevents;

pub(crate) use calls::Calls;
pub(crate) use drift::Drift;
pub(crate) use guests::{CheckInputs, Guest, Guests, NamedSocket, VmSockets};
pub(crate) use messages::{Apply, Check, STEP, STUCK, StartedTransaction};
pub(crate) use ready::ready;
pub(crate) use transactions::{Host, TransactionRunner};

/// Default path of the daemon's socket.
pub(crate) const SOCKET: &str = "/run/p2pctl/api.sock";
