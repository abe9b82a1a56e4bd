//! The assigned devices of a VM, from the request to the release. The main thread owns all of this.
//!
//! ```text
//! check ──▶ open (IOMMU contexts) ──▶ lay out (buses, windows, BARs) ──▶ assign, plug ──▶ slot ──▶ release
//! ```
//! Devices at boot and devices that are added later take the same steps. A failure undoes all earlier steps:
//! descriptors, windows, mappings and slots are values that are dropped with the attempt.

mod add;
mod boot;
mod bus_resources;
mod check;
mod contexts;
mod events;
mod limit;
mod registry;
mod release;
mod slot_contents;
mod view;

pub(crate) use add::AddContext;
pub(crate) use boot::OpenDevices;
pub(crate) use check::{CheckedDevices, accepted, check_devices, domain_of};
pub(crate) use contexts::Contexts;
pub(crate) use limit::address_limit;
pub(crate) use registry::{Devices, RemoveError, RemoveOptions};
pub(crate) use slot_contents::Guest;
pub(crate) use view::DeviceView;
