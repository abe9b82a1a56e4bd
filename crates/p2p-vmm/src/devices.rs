//! The assigned devices of a VM, from the request to the release. The main thread owns all of this.
//!
//! ```text
//! judge ──▶ open (IOMMU contexts) ──▶ lay out (guest's buses, windows, BARs) ──▶ assign, plug ──▶ slot ──▶ release
//! ```
//! What a VM has when it boots and what comes later go the same way, and so everything may go again. A failure on the
//! way leaves nothing behind: descriptors, windows, mappings and slots are values that end with the attempt.

mod add;
mod boot;
mod bus_resources;
mod contexts;
mod events;
mod judge;
mod limit;
mod registry;
mod release;
mod slot_contents;
mod view;

pub(crate) use add::{AddContext, AddError};
pub(crate) use boot::OpenDevices;
pub(crate) use contexts::Contexts;
pub(crate) use judge::{Judged, accepted, domain_of, judge};
pub(crate) use limit::address_limit;
pub(crate) use registry::{Devices, RemoveError, RemoveOptions};
pub(crate) use slot_contents::Guest;
pub(crate) use view::DeviceView;
