//! What is known of cloud-hypervisor as its releases are: its command line, its memory map, and what of peer-to-peer
//! can be held with it.
//!
//! A VM of it has one IOMMU context. Every BAR of every device is mapped there or none is, so it has one P2P domain to
//! which all devices belong, or none. Its guest has one flat bus, and where BARs are is its own choice.

mod command_line;
mod device;
mod gate;
mod json;
mod look;
mod memory;
mod option_list;
mod refusal;
mod restored;
mod rewrite;
mod rules;
mod seen;
mod vdpa;
mod version;

pub(crate) use command_line::CommandLine;
pub(crate) use gate::StockGate;
pub(crate) use look::{Question, look};
pub(crate) use refusal::Refusal;
pub(crate) use rewrite::{Apart, Change, Rewritten, asked, option, rewrite, vdpa};
pub(crate) use version::Version;
