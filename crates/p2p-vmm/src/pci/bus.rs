//! The functions of the guest's PCI segment, by address.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use p2p_vfio::{AddressRange, Gpa};
use vm_memory::GuestAddress;

use super::address::Bdf;
use crate::lock::lock;

/// A function on the guest's PCI bus.
///
/// vCPU threads call it with its lock held; it must not call back into the bus.
pub(crate) trait PciFunction: Send {
    /// Reads configuration space; `offset` and the length of `data` stay inside the 4096 bytes.
    fn config_read(&mut self, offset: u16, data: &mut [u8]);

    /// Writes configuration space; `offset` and the length of `data` stay inside the 4096 bytes.
    fn config_write(&mut self, offset: u16, data: &[u8]);

    /// Reads from a BAR; `false` if `gpa` is in no BAR that is decoded and not backed by a memory slot.
    fn mmio_read(&mut self, gpa: GuestAddress, data: &mut [u8]) -> bool;

    /// Writes to a BAR; `false` if `gpa` is in no BAR that is decoded and not backed by a memory slot.
    fn mmio_write(&mut self, gpa: GuestAddress, data: &[u8]) -> bool;

    /// The buses below a bridge, from the one that is directly below it; `None` for what is no bridge.
    fn buses_below(&self) -> Option<RangeInclusive<u8>> {
        None
    }

    /// The windows of a bridge that are open: what it lets through to the bus below; `None` for what is no bridge.
    fn windows(&self) -> Option<Vec<AddressRange<Gpa>>> {
        None
    }

    /// Whether a bridge holds the bus below it in reset.
    fn holds_reset(&self) -> bool {
        false
    }

    /// Brings the function to its state after power-on.
    fn reset(&mut self) {}

    /// Learns which addresses the bridges above let through.
    fn set_reach(&mut self, _ranges: &[AddressRange<Gpa>]) {}

    /// Tries again to decode BARs that could not be decoded because another function had their addresses.
    fn settle(&mut self) {}

    /// Learns that the hypervisor could not reach memory that a BAR shows at `gpa`; whether it does.
    fn memory_fault(&mut self, _gpa: GuestAddress) -> bool {
        false
    }
}

/// A function that can be shared between the bus and its owner.
pub(crate) type SharedFunction = Arc<Mutex<dyn PciFunction>>;

/// Why a function could not be added.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PciError {
    #[error("there already is a PCI function at {0}")]
    Occupied(Bdf),
    #[error("no bridge leads to the bus of {0}")]
    NoSuchBus(Bdf),
}

/// The guest's PCI segment: a tree of bridges, in which bus numbers are what the guest has programmed.
#[derive(Default)]
pub(crate) struct PciBus {
    nodes: RwLock<BTreeMap<Place, Node>>,
    /// What the host bridge lets through.
    windows: Vec<AddressRange<Gpa>>,
    /// Held while a write to a header takes effect elsewhere, so that the last write decides.
    effects: Mutex<()>,
}

/// Registers whose effects go beyond the function: all of the header (PCI r3.0 §6.1).
const HEADER_END: u16 = 0x40;

/// Which wires a bus is: the root bus, or those below a bridge.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Wires {
    Root,
    Below(u32),
}

/// Where a function sits, which no renumbering changes.
type Place = (Wires, u8, u8);

struct Node {
    function: SharedFunction,
    /// The wires below, should this be a bridge.
    below: Wires,
}

type Nodes = BTreeMap<Place, Node>;

/// The wires that have bus number `bus` now (PCI-to-PCI bridge r1.2 §3.1.2.1: type 1 transactions).
fn wires_of(nodes: &Nodes, bus: u8) -> Option<Wires> {
    let (mut wires, mut number) = (Wires::Root, 0);
    while number != bus {
        let (below, secondary) = children(nodes, wires).find_map(|node| {
            let buses = lock(&node.function).buses_below()?;
            buses.contains(&bus).then_some((node.below, *buses.start()))
        })?;
        (wires, number) = (below, secondary);
    }
    Some(wires)
}

fn children(nodes: &Nodes, wires: Wires) -> impl Iterator<Item = &Node> {
    let all = (wires, u8::MIN, u8::MIN)..=(wires, u8::MAX, u8::MAX);
    nodes.range(all).map(|(_, node)| node)
}

/// Tells everything on `wires` and below what reaches it through the bridges above.
fn spread(nodes: &Nodes, wires: Wires, reach: &[AddressRange<Gpa>]) {
    for node in children(nodes, wires) {
        let windows = lock(&node.function).windows();
        match windows {
            Some(windows) => {
                let both = |window: &AddressRange<Gpa>| {
                    let window = *window;
                    reach.iter().filter_map(move |r| r.intersect(&window))
                };
                let below: Vec<_> = windows.iter().flat_map(both).collect();
                spread(nodes, node.below, &below);
            }
            None => lock(&node.function).set_reach(reach),
        }
    }
}

/// Resets everything on `wires` and below, endpoints before the ports above them.
fn reset_below(nodes: &Nodes, wires: Wires) {
    for node in children(nodes, wires) {
        reset_below(nodes, node.below);
        lock(&node.function).reset();
    }
}

impl PciBus {
    /// A segment without functions whose host bridge lets `windows` through.
    pub(crate) fn new(windows: Vec<AddressRange<Gpa>>) -> Self {
        Self {
            windows,
            ..Self::default()
        }
    }

    /// Puts `function` at `bdf`, on the bus that has this number now.
    pub(crate) fn add(&self, bdf: Bdf, function: SharedFunction) -> Result<(), PciError> {
        let mut nodes = self.nodes.write().unwrap_or_else(PoisonError::into_inner);
        let wires = wires_of(&nodes, bdf.bus()).ok_or(PciError::NoSuchBus(bdf))?;
        let free = (0..=u32::MAX).map(Wires::Below).find(|candidate| {
            let taken = nodes.values().any(|node| node.below == *candidate);
            !taken
        });
        match nodes.entry((wires, bdf.device(), bdf.function())) {
            Entry::Vacant(place) => {
                let below = free.ok_or(PciError::NoSuchBus(bdf))?;
                place.insert(Node { function, below });
                Ok(())
            }
            Entry::Occupied(_) => Err(PciError::Occupied(bdf)),
        }
    }

    /// Reads configuration space; all ones where there is no function.
    pub(crate) fn config_read(&self, bdf: Bdf, offset: u16, data: &mut [u8]) {
        match self.function(bdf) {
            Some(function) => lock(&function).config_read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// Writes configuration space; ignored where there is no function.
    pub(crate) fn config_write(&self, bdf: Bdf, offset: u16, data: &[u8]) {
        let Some((function, below)) = self.find(bdf) else {
            return;
        };
        if offset >= HEADER_END {
            lock(&function).config_write(offset, data);
            return;
        }
        let _effects = lock(&self.effects);
        let (is_bridge, reset) = {
            let mut function = lock(&function);
            let before = function.holds_reset();
            function.config_write(offset, data);
            let is_bridge = function.buses_below().is_some();
            (is_bridge, function.holds_reset() && !before)
        };
        let nodes = self.nodes.read().unwrap_or_else(PoisonError::into_inner);
        if reset {
            reset_below(&nodes, below);
        }
        if is_bridge {
            spread(&nodes, Wires::Root, &self.windows);
        }
        for node in nodes.values() {
            lock(&node.function).settle();
        }
    }

    /// Passes on that the hypervisor could not reach the memory of a BAR; whether there is one.
    pub(crate) fn memory_fault(&self, gpa: GuestAddress) -> bool {
        let all = self.all();
        all.iter().any(|function| lock(function).memory_fault(gpa))
    }

    /// Reads from whichever function has a BAR at `gpa`; all ones if none has.
    pub(crate) fn mmio_read(&self, gpa: GuestAddress, data: &mut [u8]) {
        let taken = self
            .all()
            .iter()
            .any(|function| lock(function).mmio_read(gpa, data));
        if !taken {
            log::debug!(
                "guest reads {} bytes at {:#x}: nothing there",
                data.len(),
                gpa.0
            );
            data.fill(0xff);
        }
    }

    /// Writes to whichever function has a BAR at `gpa`; ignored if none has.
    pub(crate) fn mmio_write(&self, gpa: GuestAddress, data: &[u8]) {
        let taken = self
            .all()
            .iter()
            .any(|function| lock(function).mmio_write(gpa, data));
        if !taken {
            log::debug!(
                "guest writes {} bytes at {:#x}: nothing there",
                data.len(),
                gpa.0
            );
        }
    }

    fn function(&self, bdf: Bdf) -> Option<SharedFunction> {
        self.find(bdf).map(|(function, _)| function)
    }

    /// A function, and the wires below it should it be a bridge.
    fn find(&self, bdf: Bdf) -> Option<(SharedFunction, Wires)> {
        let nodes = self.nodes.read().unwrap_or_else(PoisonError::into_inner);
        let wires = wires_of(&nodes, bdf.bus())?;
        let node = nodes.get(&(wires, bdf.device(), bdf.function()))?;
        Some((Arc::clone(&node.function), node.below))
    }

    /// The functions as they are now; they are called without the lock of the bus.
    fn all(&self) -> Vec<SharedFunction> {
        let nodes = self.nodes.read().unwrap_or_else(PoisonError::into_inner);
        nodes
            .values()
            .map(|node| Arc::clone(&node.function))
            .collect()
    }
}

#[cfg(test)]
mod tests;
