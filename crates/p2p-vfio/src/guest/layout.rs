//! Where the guest finds its devices: bus numbers, bridge windows and BARs, as firmware would leave
//! them. A pure function of the devices' BARs and the windows of the host bridge.
//!
//! ```text
//! bus 0 ─┬─ host bridge
//!        ├─ root port ── upstream ─┬─ downstream ── device     a P2P domain
//!        │                         └─ downstream ── device
//!        └─ root port ── device                                a device outside of any
//! ```

mod error;
mod extent;
mod tree;

#[cfg(test)]
mod tests;

use iommu_group::Sbdf;

use crate::address::{Address, AddressRange, Gpa};
use crate::device::BarInfo;

use super::port::{Link, VirtualPort};

pub use error::LayoutError;
use extent::{Extent, Kind};
use tree::Tree;

/// A device that needs a place.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Its memory BARs.
    pub bars: Vec<BarInfo>,
    /// Where each of them must be, by number, if the host's switch reaches them by bus address; empty if anywhere.
    pub at: Vec<(u8, Gpa)>,
    /// Its link, which the port above it shows as well.
    pub link: Link,
}

/// Something below a root port of its own.
#[derive(Clone, Debug)]
pub enum Branch {
    /// One device.
    Device(Endpoint),
    /// The members of a P2P domain, below one switch.
    Switch(Vec<Endpoint>),
}

/// Where BARs may be that can be anywhere.
#[derive(Clone, Debug)]
pub struct Apertures {
    /// Below 4 GiB: for BARs that are not both 64-bit and prefetchable.
    pub memory: Vec<AddressRange<Gpa>>,
    /// For BARs that are 64-bit and prefetchable.
    pub prefetchable: Vec<AddressRange<Gpa>>,
}

/// Where an endpoint is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlacedEndpoint {
    /// Its address in the guest.
    pub sbdf: Sbdf,
    /// Its BARs with their addresses, in the order of their numbers.
    pub bars: Vec<(BarInfo, Gpa)>,
}

/// All of the guest's topology below the host bridge.
#[derive(Debug)]
pub struct GuestTopology {
    /// The ports, programmed.
    pub ports: Vec<(Sbdf, VirtualPort)>,
    /// The endpoints, in the order in which the branches name them.
    pub endpoints: Vec<PlacedEndpoint>,
}

/// The windows that must be where they are, so that RAM can keep clear of them: those of branches with an endpoint that
/// is reached by bus address.
///
/// # Errors
/// As [`lay_out`].
pub fn fixed_windows(branches: &[Branch]) -> Result<Vec<AddressRange<Gpa>>, LayoutError> {
    let mut tree = Tree::default();
    tree.build(branches)?;
    tree.fix()?;
    let roots: Vec<usize> = tree.children(None).collect();
    let windows = roots.iter().filter_map(|root| tree.nodes.get(*root));
    Ok(windows.flat_map(|node| node.windows).flatten().collect())
}

/// Lays out the topology.
///
/// # Errors
/// [`LayoutError`] if there are not enough device numbers, buses or addresses, or if what must be at a certain address
/// cannot be there.
pub fn lay_out(branches: &[Branch], apertures: &Apertures) -> Result<GuestTopology, LayoutError> {
    let mut tree = Tree::default();
    tree.build(branches)?;
    tree.fix()?;
    let roots: Vec<usize> = tree.children(None).collect();
    for (kind, ranges) in [
        (Kind::Memory, &apertures.memory),
        (Kind::Prefetchable, &apertures.prefetchable),
    ] {
        let fixed = roots.iter().filter_map(|root| tree.nodes.get(*root));
        let mut taken: Vec<_> = fixed.flat_map(|node| node.windows).flatten().collect();
        let mut needs: Vec<(usize, Extent)> = roots
            .iter()
            .filter(|root| !tree.is_fixed(**root))
            .map(|root| (*root, tree.need(*root, kind)))
            .filter(|(_, need)| need.bytes > 0)
            .collect();
        needs.sort_by_key(|(_, need)| std::cmp::Reverse(need.align_bytes));
        for (root, need) in needs {
            let range = first_fit(need, ranges, &taken).ok_or(LayoutError::Aperture {
                kind: kind.name(),
                needed_bytes: need.bytes,
                align_bytes: need.align_bytes,
            })?;
            taken.push(range);
            tree.place(root, kind, range.start().value());
        }
    }
    Ok(tree.finish())
}

/// The lowest place for `need` in `apertures` that overlaps nothing in `taken`.
fn first_fit(
    need: Extent,
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
