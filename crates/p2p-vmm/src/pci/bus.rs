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
mod tests {
    use super::*;

    /// A function with one byte of memory at `bar`.
    struct OneByte {
        bar: GuestAddress,
        value: u8,
    }

    impl PciFunction for OneByte {
        fn config_read(&mut self, offset: u16, data: &mut [u8]) {
            data.fill(u8::try_from(offset).unwrap());
        }

        fn config_write(&mut self, _offset: u16, data: &[u8]) {
            self.value = data[0];
        }

        fn mmio_read(&mut self, gpa: GuestAddress, data: &mut [u8]) -> bool {
            data.fill(self.value);
            gpa == self.bar
        }

        fn mmio_write(&mut self, gpa: GuestAddress, data: &[u8]) -> bool {
            let here = gpa == self.bar;
            if here {
                self.value = data[0];
            }
            here
        }
    }

    fn function(bar: u64) -> SharedFunction {
        Arc::new(Mutex::new(OneByte {
            bar: GuestAddress(bar),
            value: 0,
        }))
    }

    fn slot(device: u8) -> Bdf {
        Bdf::new(0, device, 0).unwrap()
    }

    #[test]
    fn absent_function_reads_all_ones() {
        let bus = PciBus::default();
        let mut data = [0; 4];
        bus.config_read(slot(1), 0, &mut data);
        assert_eq!(data, [0xff; 4]);
        bus.config_write(slot(1), 0, &data);
    }

    #[test]
    fn configuration_reaches_the_addressed_function_only() {
        let bus = PciBus::default();
        bus.add(slot(1), function(0x1000)).unwrap();
        bus.add(slot(2), function(0x2000)).unwrap();
        bus.config_write(slot(2), 0, &[7]);

        let mut one = [9];
        bus.mmio_read(GuestAddress(0x1000), &mut one);
        let mut two = [9];
        bus.mmio_read(GuestAddress(0x2000), &mut two);

        assert_eq!((one, two), ([0], [7]));
    }

    #[test]
    fn memory_access_goes_to_the_function_that_takes_it() {
        let bus = PciBus::default();
        bus.add(slot(1), function(0x1000)).unwrap();
        bus.add(slot(2), function(0x2000)).unwrap();
        bus.mmio_write(GuestAddress(0x2000), &[5]);

        let mut data = [0];
        bus.mmio_read(GuestAddress(0x2000), &mut data);
        assert_eq!(data, [5]);
        bus.mmio_read(GuestAddress(0x3000), &mut data);
        assert_eq!(data, [0xff], "nothing is there");
    }

    #[test]
    fn address_is_given_once() {
        let bus = PciBus::default();
        bus.add(slot(1), function(0x1000)).unwrap();
        assert_eq!(
            bus.add(slot(1), function(0x2000)),
            Err(PciError::Occupied(slot(1)))
        );
    }

    /// A bridge with two bus numbers, which a write to configuration space sets.
    struct Bridge(u8, u8);

    impl PciFunction for Bridge {
        fn config_read(&mut self, _offset: u16, data: &mut [u8]) {
            data.fill(0);
        }

        fn config_write(&mut self, _offset: u16, data: &[u8]) {
            (self.0, self.1) = (data[0], data[1]);
        }

        fn mmio_read(&mut self, _gpa: GuestAddress, _data: &mut [u8]) -> bool {
            false
        }

        fn mmio_write(&mut self, _gpa: GuestAddress, _data: &[u8]) -> bool {
            false
        }

        fn buses_below(&self) -> Option<RangeInclusive<u8>> {
            Some(self.0..=self.1)
        }
    }

    fn bridge(secondary: u8, subordinate: u8) -> SharedFunction {
        Arc::new(Mutex::new(Bridge(secondary, subordinate)))
    }

    fn at(bus: u8, device: u8) -> Bdf {
        Bdf::new(bus, device, 0).unwrap()
    }

    fn is_there(bus: &PciBus, bdf: Bdf) -> bool {
        let mut data = [0xff];
        bus.config_read(bdf, 0x40, &mut data);
        data != [0xff]
    }

    fn switch() -> PciBus {
        let bus = PciBus::default();
        bus.add(at(0, 1), bridge(1, 3)).unwrap();
        bus.add(at(1, 0), bridge(2, 3)).unwrap();
        bus.add(at(2, 4), bridge(3, 3)).unwrap();
        bus.add(at(3, 0), function(0x1000)).unwrap();
        bus
    }

    #[test]
    fn functions_behind_bridges_are_found_by_bus_number() {
        let bus = switch();
        assert!(is_there(&bus, at(3, 0)));
        assert!(!is_there(&bus, at(3, 1)) && !is_there(&bus, at(4, 0)));
    }

    #[test]
    fn a_guest_may_renumber_buses() {
        let bus = switch();
        bus.config_write(at(2, 4), 0x19, &[9, 9]);
        assert!(!is_there(&bus, at(3, 0)) && !is_there(&bus, at(9, 0)));
        bus.config_write(at(1, 0), 0x19, &[2, 9]);
        bus.config_write(at(0, 1), 0x19, &[1, 9]);
        assert!(is_there(&bus, at(9, 0)));
    }

    #[test]
    fn a_function_needs_a_bus() {
        let bus = switch();
        assert_eq!(
            bus.add(at(7, 0), function(0x2000)),
            Err(PciError::NoSuchBus(at(7, 0)))
        );
    }
}
