//! What hangs below one port of a bus.

use iommu_group::{AddressRange, Gpa};

use crate::Endpoint;

/// Something below a port of its own.
#[derive(Clone, Debug)]
pub enum Subtree {
    /// One endpoint.
    Endpoint(Endpoint),
    /// The members of a P2P domain, below one switch. Only a root bus takes it.
    Switch {
        /// The members.
        members: Vec<Endpoint>,
        /// What the switch keeps for those that come later.
        reserve: Reserve,
    },
}

impl Subtree {
    /// Its endpoints.
    #[must_use]
    pub fn endpoints(&self) -> &[Endpoint] {
        match self {
            Self::Endpoint(endpoint) => std::slice::from_ref(endpoint),
            Self::Switch { members, .. } => members,
        }
    }
}

/// What a switch has beyond the needs of its first members, so that others find room later without anything being
/// moved.
#[derive(Clone, Debug, Default)]
pub struct Reserve {
    /// Bus numbers for that many more members; a switch has 32 slots at most.
    pub slots: u8,
    /// For members that can be anywhere: bytes of the window for BARs that are not both 64-bit and prefetchable.
    pub memory_bytes: u64,
    /// For members that can be anywhere: bytes of the window for BARs that are both.
    pub prefetchable_bytes: u64,
    /// For members at their bus addresses: windows that later ones may be in, best first. The first that overlap nothing
    /// else become the switch's.
    pub windows: Vec<Vec<AddressRange<Gpa>>>,
}
