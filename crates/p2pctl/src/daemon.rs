//! The host's daemon: the one process that changes groups while virtual machines run.
//!
//! ```text
//! p2pctl apply ──REST──▶ calls ──▶ changes ──▶ transaction (one at a time, a thread) ──▶ sysfs
//!                                     │              └──▶ VMMs, through their APIs
//! p2pctl watch ◀──events── event log◀┴── drift (what others do to the host)
//! ```
//!
//! It can be killed at any time: what it was doing is in the journal, and the next one brings it to an end.

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
pub(crate) use messages::{Apply, Began, Check, STEP, STUCK, Told};
pub(crate) use ready::ready;

/// Where the daemon listens, unless it is told otherwise.
pub(crate) const SOCKET: &str = "/run/p2pctl/api.sock";
