//! Memory of this process that the guest or a device may be given access to.

use std::sync::Arc;

use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, MmapRegion};

use crate::address::{Address, Gpa};
use crate::sys::BarMapping;

/// A piece of guest RAM or of a device's BAR, mapped in this process.
///
/// Whoever makes a memory slot or an IOMMU mapping of it keeps the value for as long as that
/// stands: the mapping in this process lives until the last clone is dropped, so a slot can never
/// outlive what it shows.
#[derive(Clone, Debug)]
pub struct HostMemory(Owner);

#[derive(Clone, Debug)]
enum Owner {
    Ram(Arc<MmapRegion>),
    Bar(Arc<BarMapping>),
}

impl HostMemory {
    /// The regions of guest RAM with the guest-physical address at which each begins.
    pub fn of_guest(memory: &GuestMemoryMmap) -> Vec<(Gpa, Self)> {
        memory
            .iter()
            .map(|region| {
                let start = Gpa::new(region.start_addr().0);
                (start, Self(Owner::Ram(region.get_mmap())))
            })
            .collect()
    }

    pub(crate) fn of_bar(mapping: Arc<BarMapping>) -> Self {
        Self(Owner::Bar(mapping))
    }

    /// What DMA into guest RAM does.
    #[cfg(test)]
    pub(crate) fn store(&self, offset_bytes: usize, word: u32) {
        use vm_memory::{Bytes, VolatileMemory};
        if let Owner::Ram(region) = &self.0 {
            let slice = region.as_volatile_slice();
            slice.write_obj(word, offset_bytes).unwrap();
        }
    }

    /// Whether it is guest RAM, which no device can take away.
    pub(crate) fn is_ram(&self) -> bool {
        matches!(self.0, Owner::Ram(_))
    }

    /// First byte in this process. Never make a reference to it: guest and devices write there.
    pub fn as_ptr(&self) -> *mut u8 {
        match &self.0 {
            Owner::Ram(region) => region.as_ptr(),
            Owner::Bar(mapping) => mapping.as_ptr(),
        }
    }

    /// Length in bytes.
    pub fn len_bytes(&self) -> usize {
        match &self.0 {
            Owner::Ram(region) => region.size(),
            Owner::Bar(mapping) => mapping.len_bytes(),
        }
    }
}
