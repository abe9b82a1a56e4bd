//! The number of an IOMMU group.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The number of an IOMMU group, as in `/sys/kernel/iommu_groups/<number>`.
///
/// Linux assigns the lowest free number and reuses the numbers of deleted groups (linux 7.2 drivers/iommu/iommu.c:
/// `iommu_group_alloc()`). A number is therefore valid only until the next removal. Compare the members of groups, not
/// their numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct GroupId(pub u32);

impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}
