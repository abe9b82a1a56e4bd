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
mod changes;
#[cfg(test)]
mod document;
mod drift;
mod guests;
mod messages;
mod ready;
mod uevents;

pub(crate) use calls::Calls;
pub(crate) use changes::{Changes, Host};
pub(crate) use drift::Drift;
pub(crate) use guests::{Guest, Guests, Judgement, NamedSocket, Places};
pub(crate) use messages::{Apply, Began, Check, STEP, STUCK};
pub(crate) use ready::ready;

/// Default path of the daemon's socket.
pub(crate) const SOCKET: &str = "/run/p2pctl/api.sock";
