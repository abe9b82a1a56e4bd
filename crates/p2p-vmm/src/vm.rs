//! A virtual machine: built from its configuration, run until it ends, taken apart in order.
//!
//! ```text
//! Host (lives through resets)        Machine (one VM)                     running
//! KVM, signals, serial backend  ──▶  memory, slots, GSIs, PCI, ports  ──▶  vCPU threads + event loop
//! ```
//!
//! A reset takes the machine apart and builds a new one from the same configuration, so nothing of the old one can
//! leak into the new one.

mod host;
mod machine;
mod run;

pub(crate) use host::Host;
pub(crate) use run::run;
