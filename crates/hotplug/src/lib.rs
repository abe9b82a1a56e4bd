//! Lifecycle of assigned devices, the slots by which they come and go, and changes of IOMMU groups on a live host.
//!
//! [`lifecycle`] is the state machine of one device. [`SlotRegisters`] are the registers between a VMM and the ACPI
//! methods of its guest. [`regroup`] changes the IOMMU groups of a live host, with the devices unplugged meanwhile.

pub mod lifecycle;
pub mod regroup;
mod slots;

pub use slots::{Register, SlotRegisters};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
