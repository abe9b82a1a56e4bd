//! A virtual machine: build it from its configuration, run it until it ends, tear it down in order.
//!
//! ```text
//! command line ─┐
//! API calls ────┴▶ VmState (which command is valid) ──▶ VmController (executes it)
//!                                                          │
//!            Host (kept across resets)          Machine (one VM)                     running
//!            KVM, serial backend          ──▶  memory, slots, GSIs, PCI, ports  ──▶  vCPU threads
//! ```
//! The main thread owns all of it, and waits in one event loop. A reset tears the machine down and builds a new one
//! from the same configuration, so no state of the old one remains.

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
