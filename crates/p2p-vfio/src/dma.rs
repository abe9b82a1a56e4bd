//! What an IOMMU context lets devices reach.

use std::io;

use thiserror::Error;

use crate::memory::HostMemory;
use iommu_group::{AddressRange, Iova};

/// Why a change to an IOMMU context failed. Nothing was changed then.
#[derive(Debug, Error)]
pub enum DmaError {
    /// The kernel did not make the mapping.
    #[error("cannot map {range} for DMA: {error}")]
    Map {
        /// Where it should have appeared.
        range: AddressRange<Iova>,
        /// What the kernel said.
        error: io::Error,
    },
    /// The kernel did not take the mapping away.
    #[error("cannot unmap {range} from DMA: {error}")]
    Unmap {
        /// What should have gone.
        range: AddressRange<Iova>,
        /// What the kernel said.
        error: io::Error,
    },
    /// The range is not mapped as such here.
    #[error("cannot unmap {0} from DMA: it is not mapped")]
    NotMapped(AddressRange<Iova>),
    /// The memory cannot be expressed as a range of I/O addresses.
    #[error("cannot map {len_bytes} bytes at {iova} for DMA: not a range of I/O addresses")]
    BadRange {
        /// Where it should have appeared.
        iova: Iova,
        /// How long it is.
        len_bytes: usize,
    },
}

/// One IOMMU context: the translation that all devices attached to it share.
///
/// Mappings never overlap; what is mapped is removed exactly as it was made. The backend keeps the
/// memory behind a mapping for as long as the mapping stands, and mappings of guest RAM stand whether
/// or not a device is attached at the moment.
///
/// A BAR is only mapped while its device decodes memory, and its owner unmaps it *before* the device is
/// reset, sleeps, or stops decoding: type1 would let peers reach into that (linux 7.2
/// drivers/vfio/vfio_iommu_type1.c has no revocation), and iommufd, where a BAR is a dma-buf, would kill
/// the mapping for good (linux 7.2 drivers/vfio/pci/vfio_pci_dmabuf.c) — it still has to be unmapped
/// there, and mapping it again makes a new one. How guest RAM is shared between contexts is the
/// backends' business: they recognise the memory that they are given.
///
/// What all backends must do is checked by the suite in `contract`, on the fake in unit tests and on
/// the kernel in the lab.
pub(crate) trait DmaBackend: Send + Sync {
    /// Lets the devices read and write `memory` at `iova`.
    ///
    /// # Errors
    /// [`DmaError::Map`] if the kernel refuses: an overlap (`EEXIST`), addresses beyond the IOMMU's
    /// width or on a reserved region (`EINVAL`), a BAR whose device has memory decode off (`EFAULT` of type1, `ENODEV`
    /// of iommufd), the locked-memory limit (`ENOMEM`), on iommufd a BAR of a device that was not opened to be a peer
    /// (`EOPNOTSUPP`). Nothing is mapped then.
    fn map(&self, iova: Iova, memory: HostMemory) -> Result<AddressRange<Iova>, DmaError>;

    /// Takes a range away that [`map`](Self::map) returned. No device reaches it from then on.
    ///
    /// # Errors
    /// [`DmaError::NotMapped`] if there is no such mapping; [`DmaError::Unmap`] from the kernel.
    fn unmap(&self, range: AddressRange<Iova>) -> Result<(), DmaError>;
}
