//! Resources that subtrees need on an empty root bus, computed before anything is allocated.

use iommu_group::{AddressRange, Gpa, MemoryHole};

use super::size_align::{Kind, pack};
use super::tree::Tree;
use super::{AssignError, SizeAlign};
use crate::{Apertures, BusResources, Subtree};

/// Resources that subtrees need on an empty root bus.
///
/// A VMM allocates them and passes the allocation to [`assign_resources`](super::assign_resources), which then
/// succeeds: apertures of these sizes and alignments are sufficient if they overlap neither each other nor the fixed
/// windows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Demands {
    /// Number of buses, including those that switches reserve, without the root bus.
    pub buses: u16,
    /// Aperture below 4 GiB, for BARs that are not both 64-bit and prefetchable: bridges forward these only below 4
    /// GiB.
    pub memory: SizeAlign,
    /// Aperture for 64-bit prefetchable BARs, at any address.
    pub prefetchable: SizeAlign,
    /// Bridge windows of BARs that must be at their bus addresses. The host bridge must forward them, and neither guest
    /// memory nor an aperture may overlap them.
    pub fixed_windows: Vec<AddressRange<Gpa>>,
    /// Addresses at which requests of the devices do not reach the IOMMU. Neither guest memory nor a peer's BAR without
    /// a fixed address may be there.
    pub holes: Vec<MemoryHole>,
}

impl Demands {
    /// Computes the needs of `subtrees`, whose endpoints have these memory holes on the host
    /// ([`RoutingModel::memory_holes`](iommu_group::RoutingModel::memory_holes)).
    ///
    /// # Errors
    /// [`AssignError`] if no root bus has room for them, or if a fixed BAR cannot be at its bus address.
    pub fn new<'h>(
        subtrees: &[Subtree],
        holes: impl IntoIterator<Item = &'h MemoryHole>,
    ) -> Result<Self, AssignError> {
        let nothing = Apertures {
            memory: Vec::new(),
            prefetchable: Vec::new(),
        };
        let root = BusResources::root(nothing, Vec::new());
        let free = root.buses.len();
        let mut tree = Tree::new(root);
        tree.build(subtrees)?;
        tree.fix()?;
        let used = free.saturating_sub(tree.resources.buses.len());
        let aperture = |kind: Kind| {
            let needs: Vec<SizeAlign> = tree.free_needs(kind).map(|(_, need)| need).collect();
            pack(&needs).1
        };
        Ok(Self {
            buses: u16::try_from(used).unwrap_or(u16::MAX),
            memory: aperture(Kind::Memory),
            prefetchable: aperture(Kind::Prefetchable),
            fixed_windows: tree.windows_of_tops(),
            holes: holes.into_iter().cloned().collect(),
        })
    }
}

#[cfg(test)]
mod tests;
