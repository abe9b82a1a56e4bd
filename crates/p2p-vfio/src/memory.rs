//! Memory of this process that can be mapped for the guest or for a device.
#![allow(unsafe_code, reason = "a VMM vouches for memory that it has mapped")]

use std::any::Any;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, MmapRegion};

use crate::sys::BarMmap;
use iommu_group::{Address, Gpa};

/// A piece of guest RAM or of a device's BAR, mapped in this process.
///
/// The owner of a memory slot or an IOMMU mapping keeps this value as long as the slot or mapping exists. The mapping
/// in this process lives until the last clone is dropped, so it outlives every slot that uses it.
#[derive(Clone, Debug)]
pub struct HostMemory(Owner);

#[derive(Clone, Debug)]
enum Owner {
    Ram(Arc<dyn Ram>),
    Bar(Arc<BarMmap>),
    Raw(Arc<RawMemory>),
}

/// Memory that the VMM has mapped.
struct RawMemory {
    address: usize,
    len_bytes: usize,
    is_ram: bool,
    _owner: Box<dyn Any + Send + Sync>,
}

impl fmt::Debug for RawMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes at {:#x}", self.len_bytes, self.address)
    }
}

/// A mapping of guest RAM, with any kind of dirty-page bitmap of the VMM.
trait Ram: fmt::Debug + Send + Sync {
    fn as_ptr(&self) -> *mut u8;
    fn len_bytes(&self) -> usize;
    #[cfg(test)]
    fn store(&self, offset_bytes: usize, word: u32);
}

impl<B: Bitmap + fmt::Debug + Send + Sync> Ram for MmapRegion<B> {
    fn as_ptr(&self) -> *mut u8 {
        self.as_ptr()
    }

    fn len_bytes(&self) -> usize {
        self.size()
    }

    #[cfg(test)]
    fn store(&self, offset_bytes: usize, word: u32) {
        use vm_memory::{Bytes, VolatileMemory};
        let slice = self.as_volatile_slice();
        slice.write_obj(word, offset_bytes).unwrap();
    }
}

impl HostMemory {
    /// The regions of guest RAM, each with its guest-physical start address.
    pub fn of_guest<B>(memory: &GuestMemoryMmap<B>) -> Vec<(Gpa, Self)>
    where
        B: Bitmap + fmt::Debug + Send + Sync + 'static,
    {
        memory
            .iter()
            .map(|region| {
                let start = Gpa::new(region.start_addr().0);
                (start, Self(Owner::Ram(region.get_mmap())))
            })
            .collect()
    }

    /// Memory that the VMM has mapped by itself: guest RAM (`is_ram`), or a part of a BAR that its own VFIO stack maps.
    /// `owner` unmaps it when it is dropped.
    ///
    /// # Safety
    /// `len_bytes` bytes from `start` are mapped until `owner` is dropped, and the process makes no reference into them:
    /// the guest and devices write to this memory.
    pub unsafe fn of_raw(
        start: *mut u8,
        len_bytes: usize,
        is_ram: bool,
        owner: impl Any + Send + Sync,
    ) -> Self {
        Self(Owner::Raw(Arc::new(RawMemory {
            address: start.expose_provenance(),
            len_bytes,
            is_ram,
            _owner: Box::new(owner),
        })))
    }

    pub(crate) fn of_bar(mapping: Arc<BarMmap>) -> Self {
        Self(Owner::Bar(mapping))
    }

    /// Stores a word in guest RAM, as DMA does.
    #[cfg(test)]
    pub(crate) fn store(&self, offset_bytes: usize, word: u32) {
        if let Owner::Ram(region) = &self.0 {
            region.store(offset_bytes, word);
        }
    }

    /// Whether it is guest RAM, which no device can revoke.
    pub(crate) fn is_ram(&self) -> bool {
        match &self.0 {
            Owner::Ram(_) => true,
            Owner::Bar(_) => false,
            Owner::Raw(memory) => memory.is_ram,
        }
    }

    /// The dma-buf of this piece of a BAR, if its device was opened to export one.
    pub(crate) fn dma_buf(&self) -> Option<BorrowedFd<'_>> {
        match &self.0 {
            Owner::Ram(_) | Owner::Raw(_) => None,
            Owner::Bar(mapping) => mapping.dma_buf().map(AsFd::as_fd),
        }
    }

    /// First byte in this process. Do not make a reference to it: the guest and devices write to this memory.
    pub fn as_ptr(&self) -> *mut u8 {
        match &self.0 {
            Owner::Ram(region) => region.as_ptr(),
            Owner::Bar(mapping) => mapping.as_ptr(),
            Owner::Raw(memory) => std::ptr::with_exposed_provenance_mut(memory.address),
        }
    }

    /// Length in bytes.
    pub fn len_bytes(&self) -> usize {
        match &self.0 {
            Owner::Ram(region) => region.len_bytes(),
            Owner::Bar(mapping) => mapping.len_bytes(),
            Owner::Raw(memory) => memory.len_bytes,
        }
    }
}
