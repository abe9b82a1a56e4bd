//! Subtrees: what is below one port of a bus.

use iommu_group::{AddressRange, Gpa};

use crate::Endpoint;

/// The functions below one port.
#[derive(Clone, Debug)]
pub enum Subtree {
    /// One endpoint.
    Endpoint(Endpoint),
    /// A switch with the members of a P2P domain below it. It can only be on a root bus.
    Switch {
        /// The members.
        members: Vec<Endpoint>,
        /// Resources that the switch reserves for later members.
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

/// Resources that a switch reserves in addition to the needs of its first members, so that later members can be added
/// without moving anything.
#[derive(Clone, Debug, Default)]
pub struct Reserve {
    /// Bus numbers for this many more members; a switch has at most 32 slots.
    pub slots: u8,
    /// For members without fixed addresses: bytes of the window for BARs that are not both 64-bit and prefetchable.
    pub memory_bytes: u64,
    /// For members without fixed addresses: bytes of the window for BARs that are 64-bit and prefetchable.
    pub prefetchable_bytes: u64,
    /// For members at their bus addresses: sets of windows for later members, best first. The switch gets the first set
    /// that overlaps nothing else.
    pub windows: Vec<Vec<AddressRange<Gpa>>>,
}
