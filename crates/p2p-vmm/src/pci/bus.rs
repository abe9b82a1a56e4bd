//! The functions of the guest's PCI segment, by address.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

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
}

/// A function that can be shared between the bus and its owner.
pub(crate) type SharedFunction = Arc<Mutex<dyn PciFunction>>;

/// Why a function could not be added.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PciError {
    #[error("there already is a PCI function at {0}")]
    Occupied(Bdf),
}

/// The guest's PCI segment.
#[derive(Default)]
pub(crate) struct PciBus {
    functions: RwLock<BTreeMap<Bdf, SharedFunction>>,
}

impl PciBus {
    /// Puts `function` at `bdf`.
    pub(crate) fn add(&self, bdf: Bdf, function: SharedFunction) -> Result<(), PciError> {
        let mut functions = self
            .functions
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        match functions.entry(bdf) {
            Entry::Vacant(place) => {
                place.insert(function);
                Ok(())
            }
            Entry::Occupied(_) => Err(PciError::Occupied(bdf)),
        }
    }

    /// Takes the function at `bdf` off the bus.
    #[cfg_attr(not(test), expect(dead_code, reason = "nothing is unplugged yet"))]
    pub(crate) fn remove(&self, bdf: Bdf) -> Option<SharedFunction> {
        self.functions
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&bdf)
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
        if let Some(function) = self.function(bdf) {
            lock(&function).config_write(offset, data);
        }
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
        self.functions
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&bdf)
            .cloned()
    }

    /// The functions as they are now; they are called without the lock of the bus.
    fn all(&self) -> Vec<SharedFunction> {
        self.functions
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
            .cloned()
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
        assert!(bus.remove(slot(1)).is_some());
        assert_eq!(bus.add(slot(1), function(0x2000)), Ok(()));
    }
}
