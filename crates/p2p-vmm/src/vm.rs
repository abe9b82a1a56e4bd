//! A virtual machine: built from its configuration, run until it ends, taken apart in order.
//!
//! ```text
//! command line ─┐
//! API calls ────┴▶ VmState (what may be done now) ──▶ VmController (does it)
//!                                                   │
//!            Host (lives through resets)        Machine (one VM)                     running
//!            KVM, serial backend          ──▶  memory, slots, GSIs, PCI, ports  ──▶  vCPU threads
//! ```
//! The main thread owns all of it, and waits in one event loop. A reset takes the machine apart and builds a new one from
//! the same configuration, so nothing of the old one can leak into the new one.

mod answer;
mod controller;
mod event_loop;
mod host;
mod machine;
mod p2p;
mod paths;
mod pending_adds;
mod run;
mod running;
mod state;
mod tree;

pub(crate) use run::{Process, run};
