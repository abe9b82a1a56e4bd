//! What an IOMMU context lets devices reach.

use std::io;

use thiserror::Error;

use crate::address::{AddressRange, Iova};
use crate::memory::HostMemory;

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
/// Mappings never overlap; what is mapped is removed exactly as it was made.
pub(crate) trait DmaBackend: Send + Sync {
    /// Lets the devices read and write `memory` at `iova`.
    ///
    /// # Errors
    /// [`DmaError::Map`] if the kernel refuses: an overlap (`EEXIST`), addresses beyond the IOMMU's
    /// width (`EINVAL`), a BAR whose device has memory decode off (`EFAULT`), the locked-memory
    /// limit (`ENOMEM`).
    fn map(&self, iova: Iova, memory: HostMemory) -> Result<AddressRange<Iova>, DmaError>;

    /// Takes a range away that [`map`](Self::map) returned.
    ///
    /// # Errors
    /// [`DmaError::NotMapped`] if there is no such mapping; [`DmaError::Unmap`] from the kernel.
    fn unmap(&self, range: AddressRange<Iova>) -> Result<(), DmaError>;
}
