//! Resource assignment: bus numbers, bridge windows and BAR addresses of a guest's devices, as firmware would assign
//! them. It is a pure function of the devices' needs and the free resources of their bus.
//!
//! ```text
//! bus 0 ─┬─ host bridge
//!        ├─ root port ── upstream ─┬─ downstream ── device     a P2P domain
//!        │                         └─ downstream ── device
//!        └─ root port ── device                                a device outside of any
//! ```
//! The same function places the devices that are present at boot, a device or a switch that is added to the root bus
//! later, and a member that is added to the bus of a switch later. What is added is always a port with something below
//! it. A guest keeps the addresses that it finds below a bridge, but assigns new ones to an endpoint that appears by
//! itself (linux 7.2 drivers/pci/hotplug/acpiphp_glue.c: enable_slot()).

mod demands;
mod error;
mod size_align;
mod tree;
mod window;

#[cfg(test)]
mod tests;

use iommu_group::{Address, AddressRange, Bar, Gpa, Sbdf};

use crate::{Apertures, BusResources, Subtree, VirtualPort};

pub use demands::Demands;
pub use error::AssignError;
use size_align::Kind;
pub use size_align::SizeAlign;
use tree::Tree;

/// An endpoint with its addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlacedEndpoint {
    /// Its address in the guest.
    pub sbdf: Sbdf,
    /// The ports above it that were placed with it, from the top.
    pub ports: Vec<Sbdf>,
    /// Its BARs with their addresses, in the order of their indices.
    pub bars: Vec<(Bar, Gpa)>,
}

/// Subtrees with their addresses.
#[derive(Debug)]
pub struct GuestTopology {
    /// The programmed ports; each follows the one above it.
    pub ports: Vec<(Sbdf, VirtualPort)>,
    /// The endpoints, in the order of the subtrees.
    pub endpoints: Vec<PlacedEndpoint>,
}

/// Assigns device numbers, bus numbers and addresses to subtrees from the free resources in `resources`.
///
/// [`Demands`] computes the required resources in advance.
///
/// # Errors
/// [`AssignError`] if there are not enough device numbers, buses or addresses, or if a fixed BAR or window cannot be at
/// its address.
pub fn assign_resources(
    subtrees: &[Subtree],
    resources: BusResources,
) -> Result<GuestTopology, AssignError> {
    let mut tree = Tree::new(resources);
    tree.build(subtrees)?;
    tree.fix()?;
    tree.check_forwarded()?;
    tree.widen();
    for kind in [Kind::Memory, Kind::Prefetchable] {
        let mut taken = tree.resources.taken.clone();
        taken.extend(tree.windows_of_tops());
        let mut needs: Vec<(usize, SizeAlign)> = tree.free_needs(kind).collect();
        needs.sort_by_key(|(_, need)| std::cmp::Reverse(need.align_bytes));
        for (top, need) in needs {
            let Apertures {
                memory,
                prefetchable,
            } = &tree.resources.apertures;
            let ranges = match kind {
                Kind::Memory => memory,
                Kind::Prefetchable => prefetchable,
            };
            let range = first_fit(need, ranges, &taken).ok_or(AssignError::Aperture {
                kind: kind.name(),
                needed_bytes: need.bytes,
                align_bytes: need.align_bytes,
            })?;
            taken.push(range);
            tree.place(top, kind, range.start().value());
        }
    }
    Ok(tree.finish())
}

/// The lowest address in `apertures` for `need` that overlaps nothing in `taken`.
fn first_fit(
    need: SizeAlign,
    apertures: &[AddressRange<Gpa>],
    taken: &[AddressRange<Gpa>],
) -> Option<AddressRange<Gpa>> {
    let starts = apertures
        .iter()
        .chain(taken)
        .flat_map(|r| [r.start(), r.end()]);
    let mut candidates: Vec<u64> = starts
        .filter_map(|start| start.value().checked_next_multiple_of(need.align_bytes))
        .collect();
    candidates.sort_unstable();
    candidates
        .into_iter()
        .filter_map(|start| AddressRange::new(Gpa::new(start), need.bytes))
        .filter(|range| apertures.iter().any(|aperture| aperture.contains(range)))
        .find(|range| taken.iter().all(|other| range.intersect(other).is_none()))
}
