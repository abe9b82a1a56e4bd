//! The functions of the guest's PCI segment, by address.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use hotplug::{Slot, SlotBus};
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

    /// The windows of a bridge, each as it was when it was open last; none for what is no bridge.
    fn last_windows(&self) -> Vec<AddressRange<Gpa>> {
        Vec::new()
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
    #[error("there is no {0}, or the guest has changed the way to it")]
    NoSuchSlot(Slot),
}

/// The guest's PCI segment: a tree of bridges, in which bus numbers are what the guest has programmed.
#[derive(Default)]
pub(crate) struct PciBus {
    pub(super) nodes: RwLock<BTreeMap<Place, Node>>,
    /// What the host bridge lets through.
    pub(super) windows: Vec<AddressRange<Gpa>>,
    /// Held while a write to a header takes effect elsewhere, so that the last write decides.
    effects: Mutex<()>,
}

/// Registers whose effects go beyond the function: all of the header (PCI r3.0 §6.1).
const HEADER_END: u16 = 0x40;

/// Which wires a bus is: the root bus, or those below a bridge.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Wires {
    Root,
    Below(u32),
}

/// Where a function sits, which no renumbering changes.
pub(super) type Place = (Wires, u8, u8);

pub(super) struct Node {
    pub(super) function: SharedFunction,
    /// The wires below, should this be a bridge.
    pub(super) below: Wires,
}

pub(super) type Nodes = BTreeMap<Place, Node>;

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

/// Puts a function on the bus that has this number now.
fn add(nodes: &mut Nodes, bdf: Bdf, function: SharedFunction) -> Result<Place, PciError> {
    let wires = wires_of(nodes, bdf.bus()).ok_or(PciError::NoSuchBus(bdf))?;
    let free = (0..=u32::MAX).map(Wires::Below).find(|candidate| {
        let taken = nodes.values().any(|node| node.below == *candidate);
        !taken
    });
    let place = (wires, bdf.device(), bdf.function());
    match nodes.entry(place) {
        Entry::Vacant(entry) => {
            let below = free.ok_or(PciError::NoSuchBus(bdf))?;
            entry.insert(Node { function, below });
            Ok(place)
        }
        Entry::Occupied(_) => Err(PciError::Occupied(bdf)),
    }
}

/// Takes away a function and all below it.
fn remove(nodes: &mut Nodes, place: Place) -> Vec<SharedFunction> {
    let Some(node) = nodes.remove(&place) else {
        return Vec::new();
    };
    let all = (node.below, u8::MIN, u8::MIN)..=(node.below, u8::MAX, u8::MAX);
    let below: Vec<Place> = nodes.range(all).map(|(place, _)| *place).collect();
    let mut functions = vec![node.function];
    for place in below {
        functions.extend(remove(nodes, place));
    }
    functions
}

/// The wires of a bus with slots, whatever its number is; `None` if the switch is not there.
pub(super) fn wires_of_slots(nodes: &Nodes, bus: SlotBus) -> Option<Wires> {
    match bus {
        SlotBus::Root => Some(Wires::Root),
        SlotBus::Switch(root) => {
            let root = nodes.get(&(Wires::Root, root, 0))?;
            Some(nodes.get(&(root.below, 0, 0))?.below)
        }
    }
}

fn place_of(nodes: &Nodes, slot: Slot) -> Option<Place> {
    Some((wires_of_slots(nodes, slot.bus())?, slot.device(), 0))
}

pub(super) fn children(nodes: &Nodes, wires: Wires) -> impl Iterator<Item = &Node> {
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
        add(&mut nodes, bdf, function).map(drop)
    }

    /// Puts ports and what is below them into `slots`, at once: the guest sees all of it or nothing. Every function comes
    /// after the one above it.
    pub(crate) fn plug(
        &self,
        slots: &[Slot],
        functions: Vec<(Bdf, SharedFunction)>,
    ) -> Result<(), PciError> {
        let mut nodes = self.nodes.write().unwrap_or_else(PoisonError::into_inner);
        let mut added = Vec::new();
        let mut failed = None;
        for (bdf, function) in functions {
            match add(&mut nodes, bdf, function) {
                Ok(place) => added.push(place),
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
        }
        // The guest may have numbered its buses anew since they were looked at.
        let astray = |slot: &&Slot| place_of(&nodes, **slot).is_none_or(|p| !added.contains(&p));
        let failed = failed.or_else(|| Some(PciError::NoSuchSlot(*slots.iter().find(astray)?)));
        if let Some(error) = failed {
            for place in added {
                nodes.remove(&place);
            }
            return Err(error);
        }
        spread(&nodes, Wires::Root, &self.windows);
        Ok(())
    }

    /// Takes away what is in `slot`: the guest finds nothing from now on. What was there is returned, because a vCPU may
    /// not be the one that closes it.
    pub(crate) fn unplug(&self, slot: Slot) -> Vec<SharedFunction> {
        let mut nodes = self.nodes.write().unwrap_or_else(PoisonError::into_inner);
        let place = place_of(&nodes, slot);
        place.map_or_else(Vec::new, |place| remove(&mut nodes, place))
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
#[path = "bus/tests.rs"]
mod tests;
