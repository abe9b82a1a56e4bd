//! Model of released cloud-hypervisor versions: command line, guest memory map, and support for peer-to-peer DMA.
//!
//! A cloud-hypervisor VM has one IOMMU context. It maps either all BARs of all devices there, or none. A VM therefore
//! has one P2P domain with all its devices, or none. The guest has one flat bus, and cloud-hypervisor chooses the
//! addresses of BARs.

mod command_line;
mod constraints;
mod device;
mod filter;
mod inspect;
mod json;
mod memory;
mod option_list;
mod refusal;
mod restored;
mod rewrite;
mod state;
mod vdpa;
mod version;

pub(crate) use command_line::CommandLine;
pub(crate) use filter::CloudHypervisorFilter;
pub(crate) use inspect::{CheckError, CheckRequest, inspect};
pub(crate) use refusal::Refusal;
pub(crate) use rewrite::{Change, IsolationMode, Rewritten, option, requested, rewrite, vdpa};
pub(crate) use version::Version;
