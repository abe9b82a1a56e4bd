//! A VFIO container with the type1 IOMMU driver.

#![allow(
    unsafe_code,
    reason = "VFIO_IOMMU_MAP_DMA takes an address of this process"
)]

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use vfio_ioctls::{VfioContainer, VfioDeviceFd};

use crate::address::{Address, AddressRange, Iova};
use crate::dma::{DmaBackend, DmaError};
use crate::memory::HostMemory;

use super::io_error;
use super::iova::iova_ranges;

/// One container and everything mapped in it.
pub(crate) struct Type1Container {
    // Declared, and so dropped, before `mapped`: the kernel lets go of the pages first.
    container: Arc<VfioContainer>,
    mapped: Mutex<BTreeMap<AddressRange<Iova>, HostMemory>>,
}

impl Type1Container {
    /// A container without groups. `kvm` is the VM's KVM-VFIO device, which learns of every group.
    ///
    /// # Errors
    /// The errno of opening `/dev/vfio/vfio`, or a kernel without type1 version 2.
    pub(crate) fn new(kvm: Option<Arc<VfioDeviceFd>>) -> io::Result<Self> {
        let container = VfioContainer::new(kvm).map_err(io_error)?;
        Ok(Self {
            container: Arc::new(container),
            mapped: Mutex::new(BTreeMap::new()),
        })
    }

    /// The I/O addresses that may be mapped, in ascending order. Known once a group has joined.
    ///
    /// # Errors
    /// The errno of `VFIO_IOMMU_GET_INFO`.
    pub(crate) fn iova_ranges(&self) -> io::Result<Vec<AddressRange<Iova>>> {
        iova_ranges(&*self.container)
    }

    pub(super) fn container(&self) -> &Arc<VfioContainer> {
        &self.container
    }
}

impl DmaBackend for Type1Container {
    fn map(&self, iova: Iova, memory: HostMemory) -> Result<AddressRange<Iova>, DmaError> {
        let len_bytes = memory.len_bytes();
        let range = AddressRange::new(iova, len_bytes as u64)
            .ok_or(DmaError::BadRange { iova, len_bytes })?;
        let mut mapped = self.mapped.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: `memory` is a live mapping of that length, kept in `mapped` until it is unmapped
        // here or the container is gone; this process makes no reference into it.
        let result = unsafe {
            self.container
                .vfio_dma_map(iova.value(), len_bytes, memory.as_ptr())
        };
        result.map_err(|e| DmaError::Map {
            range,
            error: io_error(e),
        })?;
        mapped.insert(range, memory);
        Ok(range)
    }

    fn unmap(&self, range: AddressRange<Iova>) -> Result<(), DmaError> {
        let mut mapped = self.mapped.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(memory) = mapped.get(&range) else {
            return Err(DmaError::NotMapped(range));
        };
        self.container
            .vfio_dma_unmap(range.start().value(), memory.len_bytes())
            .map_err(|e| DmaError::Unmap {
                range,
                error: io_error(e),
            })?;
        mapped.remove(&range);
        Ok(())
    }
}
