//! IOMMU groups.

mod id;

pub use id::GroupId;
