//! IOMMU contexts on iommufd: the address spaces of one `/dev/iommu` and their mappings.

#![allow(unsafe_code, reason = "a mapping needs memory that is kept")]

use std::collections::BTreeMap;
use std::io;
#[cfg(feature = "conformance")]
use std::os::fd::BorrowedFd;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::dma::{DmaBackend, DmaError};
use crate::memory::HostMemory;
use iommu_group::{AddressRange, Iova};

use super::dma_buf::DmaBuf;
use super::iommufd::{IoasId, IommuFile};
use super::usable_ranges;

/// The iommufd of one VM. Memory that is mapped in several of its contexts is pinned once.
#[derive(Debug)]
pub(crate) struct Iommufd {
    file: IommuFile,
    pinned: Mutex<Vec<Pinned>>,
}

/// Memory of this process that is mapped in an address space.
#[derive(Clone, Copy, Debug)]
struct Pinned {
    /// Address in this process. No other memory has it as long as the mapping exists.
    address: usize,
    ioas: IoasId,
    range: AddressRange<Iova>,
}

impl Iommufd {
    /// # Errors
    /// The errno of opening `/dev/iommu`: `ENOENT` if the kernel is built without iommufd, `ENODEV` if its module is
    /// not loaded.
    pub(crate) fn open() -> io::Result<Self> {
        Ok(Self {
            file: IommuFile::open()?,
            pinned: Mutex::default(),
        })
    }

    /// Wraps an iommufd that another process has opened. Its type is not checked until it is used.
    pub(crate) fn of(file: OwnedFd) -> Self {
        Self {
            file: IommuFile::of(file),
            pinned: Mutex::default(),
        }
    }

    /// Maps a dma-buf in a temporary address space.
    ///
    /// # Errors
    /// The kernel's error.
    pub(super) fn try_map(&self, range: AddressRange<Iova>, dma_buf: &DmaBuf) -> io::Result<()> {
        let ioas = self.file.allocate()?;
        let mapped = self.file.map_dma_buf(ioas, range, dma_buf.as_fd());
        self.file.destroy(ioas)?;
        mapped
    }

    fn pinned(&self) -> MutexGuard<'_, Vec<Pinned>> {
        self.pinned.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsRawFd for Iommufd {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// One address space and its mappings. It exists whether or not a device is attached.
pub(crate) struct Ioas {
    id: IoasId,
    iommufd: Arc<Iommufd>,
    // Dropped after the address space has released the pages.
    mapped: Mutex<BTreeMap<AddressRange<Iova>, HostMemory>>,
}

impl Ioas {
    /// Creates an address space without devices.
    ///
    /// # Errors
    /// The errno of `IOMMU_IOAS_ALLOC`.
    pub(crate) fn new(iommufd: Arc<Iommufd>) -> io::Result<Self> {
        Ok(Self {
            id: iommufd.file.allocate()?,
            iommufd,
            mapped: Mutex::default(),
        })
    }

    /// The id by which devices are attached.
    pub(super) fn id(&self) -> IoasId {
        self.id
    }

    /// I/O address ranges that can be mapped, ascending. Call it when a device is attached.
    ///
    /// # Errors
    /// The errno of `IOMMU_IOAS_IOVA_RANGES`.
    pub(crate) fn iova_ranges(&self) -> io::Result<Vec<AddressRange<Iova>>> {
        let ranges = usable_ranges(self.iommufd.file.ranges(self.id)?);
        ranges.ok_or(io::Error::from_raw_os_error(libc::EPROTO))
    }

    /// Maps a dma-buf of another iommufd. Nothing else about it is known here.
    ///
    /// # Errors
    /// The kernel's error.
    #[cfg(feature = "conformance")]
    pub(crate) fn map_shared(
        &self,
        range: AddressRange<Iova>,
        dma_buf: BorrowedFd<'_>,
    ) -> io::Result<()> {
        self.iommufd.file.map_dma_buf(self.id, range, dma_buf)
    }

    /// Unmaps what [`map_shared`](Self::map_shared) has mapped.
    ///
    /// # Errors
    /// The kernel's error.
    #[cfg(feature = "conformance")]
    pub(crate) fn unmap_shared(&self, range: AddressRange<Iova>) -> io::Result<()> {
        self.iommufd.file.unmap(self.id, range)
    }

    fn lock_mapped(&self) -> MutexGuard<'_, BTreeMap<AddressRange<Iova>, HostMemory>> {
        self.mapped.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Maps memory of this process. If another address space maps it already, the mapping is copied, so that the memory
    /// is pinned and accounted once.
    fn map_ram(&self, range: AddressRange<Iova>, memory: &HostMemory) -> io::Result<()> {
        let mut pinned = self.iommufd.pinned();
        let address = memory.as_ptr().addr();
        let known = pinned
            .iter()
            .find(|p| p.address == address && p.range.len_bytes() == range.len_bytes());
        let file = &self.iommufd.file;
        match known {
            // SAFETY: the caller keeps `memory` until it is unmapped here; the owner of the other mapping keeps it too.
            Some(known) => unsafe { file.copy((known.ioas, known.range), (self.id, range)) },
            // SAFETY: the caller keeps `memory` until it is unmapped here; so does the owner of each copy.
            None => unsafe { file.map(self.id, range, memory) },
        }?;
        pinned.push(Pinned {
            address,
            ioas: self.id,
            range,
        });
        Ok(())
    }
}

impl DmaBackend for Ioas {
    fn map(&self, iova: Iova, memory: HostMemory) -> Result<AddressRange<Iova>, DmaError> {
        let len_bytes = memory.len_bytes();
        let range = AddressRange::new(iova, len_bytes as u64)
            .ok_or(DmaError::BadRange { iova, len_bytes })?;
        let mut mapped = self.lock_mapped();
        let done = match memory.dma_buf() {
            _ if memory.is_ram() => self.map_ram(range, &memory),
            Some(dma_buf) => self.iommufd.file.map_dma_buf(self.id, range, dma_buf),
            None => Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP)),
        };
        done.map_err(|error| DmaError::Map { range, error })?;
        mapped.insert(range, memory);
        Ok(range)
    }

    fn unmap(&self, range: AddressRange<Iova>) -> Result<(), DmaError> {
        let mut mapped = self.lock_mapped();
        if !mapped.contains_key(&range) {
            return Err(DmaError::NotMapped(range));
        }
        // Locked through the call: a mapping that is being removed must not be copied.
        let mut pinned = self.iommufd.pinned();
        let unmapped = self.iommufd.file.unmap(self.id, range);
        unmapped.map_err(|error| DmaError::Unmap { range, error })?;
        pinned.retain(|p| p.ioas != self.id || p.range != range);
        mapped.remove(&range);
        Ok(())
    }
}

impl Drop for Ioas {
    fn drop(&mut self) {
        let mut pinned = self.iommufd.pinned();
        pinned.retain(|p| p.ioas != self.id);
        if let Err(error) = self.iommufd.file.destroy(self.id) {
            log::error!("cannot end an I/O address space: {error}");
            // Devices may still reach the memory: keep it until the process ends.
            let mapped = self.mapped.get_mut();
            std::mem::forget(std::mem::take(
                mapped.unwrap_or_else(PoisonError::into_inner),
            ));
        }
    }
}
