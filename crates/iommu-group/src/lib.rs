//! The PCIe topology of a Linux host, its ACS settings and its IOMMU groups.
//!
//! This crate reads and decides; it writes nothing. [`Sysfs`] reads a sysfs tree, which is the live `/sys` or any
//! directory of the same shape. A function is named by its [`Sbdf`], a group by its [`GroupId`].

mod group;
mod sbdf;
mod sysfs;

pub use group::GroupId;
pub use sbdf::{Sbdf, SbdfError};
pub use sysfs::{GroupMember, Sysfs, SysfsError};
