//! DMA mappings of an IOMMU context.

use std::io;

use thiserror::Error;

use crate::memory::HostMemory;
use iommu_group::{AddressRange, Iova};

/// A change to an IOMMU context failed. The context is unchanged.
#[derive(Debug, Error)]
pub enum DmaError {
    /// The kernel refused the mapping.
    #[error("cannot map {range} for DMA: {error}")]
    Map {
        /// The requested I/O addresses.
        range: AddressRange<Iova>,
        /// The kernel's error.
        error: io::Error,
    },
    /// The kernel refused to remove the mapping.
    #[error("cannot unmap {range} from DMA: {error}")]
    Unmap {
        /// I/O addresses of the mapping.
        range: AddressRange<Iova>,
        /// The kernel's error.
        error: io::Error,
    },
    /// No mapping has exactly this range.
    #[error("cannot unmap {0} from DMA: it is not mapped")]
    NotMapped(AddressRange<Iova>),
    /// The memory does not fit into a range of I/O addresses at this start.
    #[error("cannot map {len_bytes} bytes at {iova} for DMA: not a range of I/O addresses")]
    BadRange {
        /// The requested start address.
        iova: Iova,
        /// Length in bytes.
        len_bytes: usize,
    },
}

/// One IOMMU context: the translation that all devices attached to it share.
///
/// Mappings never overlap, and each is removed with the range with which it was made. The backend keeps the memory
/// behind a mapping as long as the mapping exists. Mappings of guest RAM exist whether or not a device is attached at
/// the moment.
///
/// A BAR is mapped only while its device decodes memory. Its owner unmaps it *before* the device is reset, sleeps, or
/// stops decoding. With type1, peers could otherwise reach the device in that state (linux 7.2
/// drivers/vfio/vfio_iommu_type1.c has no revocation). With iommufd, where a BAR is a dma-buf, the kernel would revoke
/// the mapping permanently (linux 7.2 drivers/vfio/pci/vfio_pci_dmabuf.c); the owner still has to unmap it, and mapping
/// the BAR again makes a new mapping. The backends share guest RAM between contexts: they recognise the memory that
/// they are given.
///
/// The suite in `conformance` checks the requirements of all backends: on the fake in unit tests, and on the kernel in the
/// lab.
pub trait DmaBackend: Send + Sync {
    /// Maps `memory` at `iova`, so that the devices can read and write it.
    ///
    /// # Errors
    /// [`DmaError::Map`] if the kernel refuses: an overlap (`EEXIST`), addresses beyond the IOMMU's width or in a
    /// reserved region (`EINVAL`), a BAR whose device has memory decode off (`EFAULT` of type1, `ENODEV` of iommufd),
    /// the locked-memory limit (`ENOMEM`), on iommufd a BAR of a device that was not opened as a peer (`EOPNOTSUPP`).
    /// Nothing is mapped then.
    fn map(&self, iova: Iova, memory: HostMemory) -> Result<AddressRange<Iova>, DmaError>;

    /// Unmaps a range that [`map`](Self::map) returned. No device reaches it from then on.
    ///
    /// # Errors
    /// [`DmaError::NotMapped`] if there is no such mapping; [`DmaError::Unmap`] from the kernel.
    fn unmap(&self, range: AddressRange<Iova>) -> Result<(), DmaError>;
}
