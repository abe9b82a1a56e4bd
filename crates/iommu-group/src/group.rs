//! IOMMU groups: the groups that Linux forms, the reasons, and the groups after a change.

mod bus_index;
mod find;
mod groups;
mod id;
mod isolation;
mod model;
mod node;
mod reason;

pub use groups::{Difference, Groups};
pub use id::GroupId;
pub use model::{Firmware, GroupModel};
pub use reason::{AcsDeficiency, Reason, Uncertainty};
