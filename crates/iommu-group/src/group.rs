//! IOMMU groups: what Linux makes of a topology, why, and what it would make of it after a change.

mod buses;
mod find;
mod id;
mod isolation;
mod model;
mod node;
mod partition;
mod reason;

pub use id::GroupId;
pub use isolation::Lack;
pub use model::{Doubt, Firmware, GroupModel};
pub use partition::{Difference, Partition};
pub use reason::Reason;
