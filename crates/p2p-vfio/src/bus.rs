//! The functions of the guest's PCI segment, by address.

mod functions;
mod usage;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use guest_topology::{Slot, SlotBus};
use iommu_group::spec::HEADER_BYTES;
use iommu_group::{AddressRange, Gpa, Sbdf};

use crate::lock::lock;

pub(crate) use usage::BusUsage;

/// A function on the guest's PCI bus.
///
/// vCPU threads call it with its lock held. It must not call back into the bus.
pub trait PciFunction: Send {
    /// Reads configuration space; `offset` and the length of `data` stay inside the 4096 bytes.
    fn config_read(&mut self, offset: u16, data: &mut [u8]);

    /// Writes configuration space; `offset` and the length of `data` stay inside the 4096 bytes.
    fn config_write(&mut self, offset: u16, data: &[u8]);

    /// Reads from a BAR. Returns `false` if `gpa` is in no decoded BAR, or in one that a memory slot backs.
    fn mmio_read(&mut self, _gpa: Gpa, _data: &mut [u8]) -> bool {
        false
    }

    /// Writes to a BAR. Returns `false` if `gpa` is in no decoded BAR, or in one that a memory slot backs.
    fn mmio_write(&mut self, _gpa: Gpa, _data: &[u8]) -> bool {
        false
    }

    /// The bus numbers below a bridge, secondary bus first; `None` for other functions.
    fn buses_below(&self) -> Option<RangeInclusive<u8>> {
        None
    }

    /// The open windows of a bridge, which it forwards to the secondary bus; `None` for other functions.
    fn windows(&self) -> Option<Vec<AddressRange<Gpa>>> {
        None
    }

    /// The windows of a bridge as they were when they were last open; empty for other functions.
    fn last_windows(&self) -> Vec<AddressRange<Gpa>> {
        Vec::new()
    }

    /// Whether a bridge holds the bus below it in reset.
    fn holds_reset(&self) -> bool {
        false
    }

    /// Resets the function to its state after power-on.
    fn reset(&mut self) {}

    /// Sets the addresses that the bridges above forward.
    fn set_forwarded(&mut self, _ranges: &[AddressRange<Gpa>]) {}

    /// Retries to map BARs whose addresses another function had claimed.
    fn retry_mappings(&mut self) {}

    /// Handles a memory fault of the hypervisor at `gpa`. Returns whether a BAR of this function is mapped there.
    fn memory_fault(&mut self, _gpa: Gpa) -> bool {
        false
    }
}

/// A function that the bus and its owner share.
pub type SharedFunction = Arc<Mutex<dyn PciFunction>>;

/// A function could not be added.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PciError {
    /// A function is at the address.
    #[error("there is already a PCI function at {0}")]
    Occupied(Sbdf),
    /// No bridge leads to the bus.
    #[error("no bridge leads to the bus of {0}")]
    NoSuchBus(Sbdf),
    /// The slot does not exist, or not where it was.
    #[error("there is no {0}, or the guest has renumbered the buses above it")]
    NoSuchSlot(Slot),
}

/// The guest's PCI segment: a tree of bridges. The guest programs the bus numbers.
#[derive(Default)]
pub struct PciBus {
    pub(crate) nodes: RwLock<BTreeMap<Location, Node>>,
    /// The windows of the host bridge.
    pub(crate) windows: Vec<AddressRange<Gpa>>,
    /// Held while a write to a header changes other functions, so that the last write determines the result.
    effects: Mutex<()>,
}

/// A bus, independent of its current number: the root bus, or the secondary bus of a bridge.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum LogicalBus {
    Root,
    Below(u32),
}

/// The location of a function: bus, device and function number. It does not change when buses are renumbered.
pub(crate) type Location = (LogicalBus, u8, u8);

pub(crate) struct Node {
    pub(crate) function: SharedFunction,
    /// The secondary bus, if this is a bridge.
    pub(crate) below: LogicalBus,
}

pub(crate) type Nodes = BTreeMap<Location, Node>;

/// The bus with number `number` now (PCI-to-PCI bridge r1.2 §3.1.2.1: type 1 transactions).
fn bus_numbered(nodes: &Nodes, number: u8) -> Option<LogicalBus> {
    let (mut bus, mut current) = (LogicalBus::Root, 0);
    while current != number {
        let (below, secondary) = children(nodes, bus).find_map(|node| {
            let buses = lock(&node.function).buses_below()?;
            buses
                .contains(&number)
                .then_some((node.below, *buses.start()))
        })?;
        (bus, current) = (below, secondary);
    }
    Some(bus)
}

/// Adds a function to the bus that has its bus number now.
fn add(nodes: &mut Nodes, sbdf: Sbdf, function: SharedFunction) -> Result<Location, PciError> {
    let bus = bus_numbered(nodes, sbdf.bus()).ok_or(PciError::NoSuchBus(sbdf))?;
    let free = (0..=u32::MAX).map(LogicalBus::Below).find(|candidate| {
        let taken = nodes.values().any(|node| node.below == *candidate);
        !taken
    });
    let location = (bus, sbdf.device(), sbdf.function());
    match nodes.entry(location) {
        Entry::Vacant(entry) => {
            let below = free.ok_or(PciError::NoSuchBus(sbdf))?;
            entry.insert(Node { function, below });
            Ok(location)
        }
        Entry::Occupied(_) => Err(PciError::Occupied(sbdf)),
    }
}

/// Removes a function and everything below it.
fn remove(nodes: &mut Nodes, location: Location) -> Vec<SharedFunction> {
    let Some(node) = nodes.remove(&location) else {
        return Vec::new();
    };
    let all = (node.below, u8::MIN, u8::MIN)..=(node.below, u8::MAX, u8::MAX);
    let below: Vec<Location> = nodes.range(all).map(|(location, _)| *location).collect();
    let mut functions = vec![node.function];
    for location in below {
        functions.extend(remove(nodes, location));
    }
    functions
}

/// The bus of slots, independent of its number; `None` if there is no such switch.
pub(crate) fn slot_bus(nodes: &Nodes, bus: SlotBus) -> Option<LogicalBus> {
    match bus {
        SlotBus::Root => Some(LogicalBus::Root),
        SlotBus::Switch(root) => {
            let root = nodes.get(&(LogicalBus::Root, root, 0))?;
            Some(nodes.get(&(root.below, 0, 0))?.below)
        }
    }
}

fn location_of(nodes: &Nodes, slot: Slot) -> Option<Location> {
    Some((slot_bus(nodes, slot.bus())?, slot.device(), 0))
}

pub(crate) fn children(nodes: &Nodes, bus: LogicalBus) -> impl Iterator<Item = &Node> {
    let all = (bus, u8::MIN, u8::MIN)..=(bus, u8::MAX, u8::MAX);
    nodes.range(all).map(|(_, node)| node)
}

/// Sets the forwarded addresses of all functions on `bus` and below.
fn propagate_forwarded(nodes: &Nodes, bus: LogicalBus, forwarded: &[AddressRange<Gpa>]) {
    for node in children(nodes, bus) {
        let windows = lock(&node.function).windows();
        match windows {
            Some(windows) => {
                let both = |window: &AddressRange<Gpa>| {
                    let window = *window;
                    forwarded.iter().filter_map(move |r| r.intersect(&window))
                };
                let below: Vec<_> = windows.iter().flat_map(both).collect();
                propagate_forwarded(nodes, node.below, &below);
            }
            None => lock(&node.function).set_forwarded(forwarded),
        }
    }
}

/// Resets all functions on `bus` and below, endpoints before the ports above them.
fn reset_below(nodes: &Nodes, bus: LogicalBus) {
    for node in children(nodes, bus) {
        reset_below(nodes, node.below);
        lock(&node.function).reset();
    }
}

impl PciBus {
    /// A segment without functions, whose host bridge forwards `windows`.
    pub fn new(windows: Vec<AddressRange<Gpa>>) -> Self {
        Self {
            windows,
            ..Self::default()
        }
    }

    /// Adds `function` at `sbdf`, on the bus that has this number now.
    pub fn add(&self, sbdf: Sbdf, function: SharedFunction) -> Result<(), PciError> {
        let mut nodes = self.nodes.write().unwrap_or_else(PoisonError::into_inner);
        add(&mut nodes, sbdf, function).map(drop)
    }

    /// Plugs ports and everything below them into `slots`, at once: the guest sees all of it or nothing. A bridge
    /// comes before the functions below it.
    pub fn plug(
        &self,
        slots: &[Slot],
        functions: Vec<(Sbdf, SharedFunction)>,
    ) -> Result<(), PciError> {
        let mut nodes = self.nodes.write().unwrap_or_else(PoisonError::into_inner);
        let mut added = Vec::new();
        let mut failed = None;
        for (sbdf, function) in functions {
            match add(&mut nodes, sbdf, function) {
                Ok(location) => added.push(location),
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
        }
        // The guest may have renumbered its buses since the caller read them.
        let is_missing =
            |slot: &&Slot| location_of(&nodes, **slot).is_none_or(|p| !added.contains(&p));
        let failed = failed.or_else(|| Some(PciError::NoSuchSlot(*slots.iter().find(is_missing)?)));
        if let Some(error) = failed {
            for location in added {
                nodes.remove(&location);
            }
            return Err(error);
        }
        propagate_forwarded(&nodes, LogicalBus::Root, &self.windows);
        Ok(())
    }

    /// Removes the contents of `slot` from the bus. The functions are returned, so that a vCPU does not drop the last
    /// reference and close a device.
    pub fn unplug(&self, slot: Slot) -> Vec<SharedFunction> {
        let mut nodes = self.nodes.write().unwrap_or_else(PoisonError::into_inner);
        let location = location_of(&nodes, slot);
        location.map_or_else(Vec::new, |location| remove(&mut nodes, location))
    }

    /// Reads configuration space; all ones if there is no function.
    pub fn config_read(&self, sbdf: Sbdf, offset: u16, data: &mut [u8]) {
        match self.function(sbdf) {
            Some(function) => lock(&function).config_read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// Writes configuration space; ignored if there is no function.
    pub fn config_write(&self, sbdf: Sbdf, offset: u16, data: &[u8]) {
        let Some((function, below)) = self.find(sbdf) else {
            return;
        };
        // Only registers of the header have effects beyond the function.
        if usize::from(offset) >= HEADER_BYTES {
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
            propagate_forwarded(&nodes, LogicalBus::Root, &self.windows);
        }
        for node in nodes.values() {
            lock(&node.function).retry_mappings();
        }
    }

    /// Handles a memory fault of the hypervisor at `gpa`. Returns whether a BAR is mapped there.
    pub fn memory_fault(&self, gpa: Gpa) -> bool {
        let all = self.all();
        all.iter().any(|function| lock(function).memory_fault(gpa))
    }

    /// Reads from the BAR at `gpa`. Returns whether there is one; otherwise `data` is all ones.
    pub fn mmio_read(&self, gpa: Gpa, data: &mut [u8]) -> bool {
        let all = self.all();
        let is_taken = all
            .iter()
            .any(|function| lock(function).mmio_read(gpa, data));
        if !is_taken {
            log::debug!(
                "guest reads {} bytes at unclaimed address {gpa}",
                data.len()
            );
            data.fill(0xff);
        }
        is_taken
    }

    /// Writes to the BAR at `gpa`. Returns whether there is one.
    pub fn mmio_write(&self, gpa: Gpa, data: &[u8]) -> bool {
        let all = self.all();
        let is_taken = all
            .iter()
            .any(|function| lock(function).mmio_write(gpa, data));
        if !is_taken {
            log::debug!(
                "guest writes {} bytes at unclaimed address {gpa}",
                data.len()
            );
        }
        is_taken
    }

    fn function(&self, sbdf: Sbdf) -> Option<SharedFunction> {
        self.find(sbdf).map(|(function, _)| function)
    }

    /// A function, and its secondary bus, which is used only if it is a bridge.
    fn find(&self, sbdf: Sbdf) -> Option<(SharedFunction, LogicalBus)> {
        let nodes = self.nodes.read().unwrap_or_else(PoisonError::into_inner);
        let bus = bus_numbered(&nodes, sbdf.bus())?;
        let node = nodes.get(&(bus, sbdf.device(), sbdf.function()))?;
        Some((Arc::clone(&node.function), node.below))
    }

    /// All functions. They are called without the lock of the bus.
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
