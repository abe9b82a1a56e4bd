//! Where the guest finds its devices: bus numbers, bridge windows and BARs, as firmware would leave
//! them. A pure function of the devices' BARs, and of what is free on the bus they go on.
//!
//! ```text
//! bus 0 ─┬─ host bridge
//!        ├─ root port ── upstream ─┬─ downstream ── device     a P2P domain
//!        │                         └─ downstream ── device
//!        └─ root port ── device                                a device outside of any
//! ```
//! The same function places what is there at boot, a device or a switch that comes later to the root bus, and a member
//! that comes later to the bus of a switch. What comes is always a port with something below it: a guest keeps the
//! addresses that it finds below a bridge, and gives others to an endpoint that appears by itself (linux 7.2
//! drivers/pci/hotplug/acpiphp_glue.c: enable_slot()).

mod error;
mod extent;
mod tree;
mod window;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::ops::Range;

use iommu_group::{Address, AddressRange, Gpa, Sbdf};

use crate::device::BarInfo;

use super::port::{Link, PortKind, VirtualPort};

pub use error::LayoutError;
use extent::{Extent, Kind};
use tree::Tree;

/// Device numbers of a bus.
const DEVICES_PER_BUS: u8 = 32;

/// Device numbers on the root bus that a switch can have. 0 is the host bridge.
///
/// There are few because each has a slot for every device number of a switch in the guest's ACPI tables.
pub const SWITCH_SLOTS: Range<u8> = 1..9;

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

/// Something below a port of its own.
#[derive(Clone, Debug)]
pub enum Branch {
    /// One device.
    Device(Endpoint),
    /// The members of a P2P domain, below one switch. Only a root bus takes it.
    Switch {
        /// The members.
        members: Vec<Endpoint>,
        /// What the switch keeps for those that come later.
        spare: Spare,
    },
}

/// What a switch has beyond the needs of its first members, so that others find room later without anything being
/// moved.
#[derive(Clone, Debug, Default)]
pub struct Spare {
    /// Bus numbers for that many more members; a switch has 32 slots at most.
    pub slots: u8,
    /// For members that can be anywhere: bytes of the window for BARs that are not both 64-bit and prefetchable.
    pub memory_bytes: u64,
    /// For members that can be anywhere: bytes of the window for BARs that are both.
    pub prefetchable_bytes: u64,
    /// For members at their bus addresses: windows that later ones may be in, best first. The first that are in
    /// nobody's way are taken in.
    pub around: Vec<Vec<AddressRange<Gpa>>>,
}

/// Where BARs may be that can be anywhere.
#[derive(Clone, Debug)]
pub struct Apertures {
    /// Below 4 GiB: for BARs that are not both 64-bit and prefetchable.
    pub memory: Vec<AddressRange<Gpa>>,
    /// For BARs that are 64-bit and prefetchable.
    pub prefetchable: Vec<AddressRange<Gpa>>,
}

/// A bus of the guest with what is free on it and behind it.
#[derive(Clone, Debug)]
pub struct Ground {
    /// The number of the bus.
    pub bus: u8,
    /// What is put on it: root ports on the root bus, downstream ports on that of a switch.
    pub ports: PortKind,
    /// Device numbers for ports with a device, best first.
    pub device_slots: Vec<u8>,
    /// Device numbers for ports with a switch, best first.
    pub switch_slots: Vec<u8>,
    /// Bus numbers that nobody has and that lead here.
    pub buses: BTreeSet<u8>,
    /// Addresses for what can be anywhere.
    pub apertures: Apertures,
    /// All addresses that lead here.
    pub forwarded: Vec<AddressRange<Gpa>>,
    /// Windows of the ports that are there already.
    pub taken: Vec<AddressRange<Gpa>>,
}

impl Ground {
    /// An empty root bus, whose host bridge lets `forwarded` through.
    pub fn root(apertures: Apertures, forwarded: Vec<AddressRange<Gpa>>) -> Self {
        Self {
            bus: 0,
            ports: PortKind::Root,
            device_slots: (SWITCH_SLOTS.end..DEVICES_PER_BUS)
                .chain(SWITCH_SLOTS)
                .collect(),
            switch_slots: SWITCH_SLOTS.collect(),
            buses: (1..=u8::MAX).collect(),
            apertures,
            forwarded,
            taken: Vec::new(),
        }
    }
}

/// Where an endpoint is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlacedEndpoint {
    /// Its address in the guest.
    pub sbdf: Sbdf,
    /// The ports above it that come with it, from the top.
    pub ports: Vec<Sbdf>,
    /// Its BARs with their addresses, in the order of their numbers.
    pub bars: Vec<(BarInfo, Gpa)>,
}

/// Branches that have their place.
#[derive(Debug)]
pub struct GuestTopology {
    /// The ports, programmed; each after the one above it.
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
    let nowhere = Apertures {
        memory: Vec::new(),
        prefetchable: Vec::new(),
    };
    let mut tree = Tree::new(Ground::root(nowhere, Vec::new()));
    tree.build(branches)?;
    tree.fix()?;
    Ok(tree.windows_of_tops())
}

/// Gives branches a place on `ground`, beside what is there already.
///
/// # Errors
/// [`LayoutError`] if there are not enough device numbers, buses or addresses, or if what must be at a certain address
/// cannot be there.
pub fn lay_out(branches: &[Branch], ground: Ground) -> Result<GuestTopology, LayoutError> {
    let mut tree = Tree::new(ground);
    tree.build(branches)?;
    tree.fix()?;
    tree.check_forwarded()?;
    tree.widen();
    let tops: Vec<usize> = tree.children(None).collect();
    for kind in [Kind::Memory, Kind::Prefetchable] {
        let mut taken = tree.ground.taken.clone();
        taken.extend(tree.windows_of_tops());
        let mut needs: Vec<(usize, Extent)> = tops
            .iter()
            .filter(|top| !tree.is_fixed(**top))
            .map(|top| (*top, tree.need(*top, kind)))
            .filter(|(_, need)| need.bytes > 0)
            .collect();
        needs.sort_by_key(|(_, need)| std::cmp::Reverse(need.align_bytes));
        for (top, need) in needs {
            let Apertures {
                memory,
                prefetchable,
            } = &tree.ground.apertures;
            let ranges = match kind {
                Kind::Memory => memory,
                Kind::Prefetchable => prefetchable,
            };
            let range = first_fit(need, ranges, &taken).ok_or(LayoutError::Aperture {
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
