//! DMA mappings in a container, or an iommufd, that the VMM opened with the crate `vfio-ioctls`.
#![allow(unsafe_code, reason = "a mapping needs memory that is kept")]

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

use iommu_group::{Address, AddressRange, Iova};
use vfio_ioctls::{VfioContainer, VfioError, VfioOps};

use crate::dma::{DmaBackend, DmaError};
use crate::lock::lock;
use crate::memory::HostMemory;
use crate::sys::container_ranges;

/// The DMA mappings of one [`VfioOps`], which is one IOMMU context.
///
/// The VMM keeps its devices and the container. Two faults of vfio-ioctls 0.10 concern it:
/// * A group leaves KVM and the container when the *first* of its devices is dropped, and the kernel drops all mappings
///   with the last group. The VMM keeps all devices of a group until none of them is used.
/// * A BAR can be mapped in a container only. On an iommufd the kernel refuses it (`EFAULT`), because it takes BARs as
///   dma-buf only.
pub struct VfioOpsDma {
    ops: Arc<dyn VfioOps>,
    mapped: Mutex<BTreeMap<AddressRange<Iova>, HostMemory>>,
}

impl VfioOpsDma {
    /// The mappings of `ops`. Mappings that the VMM made by itself are not among them.
    pub fn new(ops: Arc<dyn VfioOps>) -> Self {
        Self {
            ops,
            mapped: Mutex::default(),
        }
    }
}

/// I/O addresses that the IOMMU translates for the devices of a container, ascending. Call it when the container has a
/// device. vfio-ioctls has no call for it.
///
/// # Errors
/// The errno of `VFIO_IOMMU_GET_INFO`; `ENODATA` if the kernel reports no ranges.
pub fn container_iova_ranges(container: &VfioContainer) -> io::Result<Vec<AddressRange<Iova>>> {
    container_ranges(container)
}

impl Drop for VfioOpsDma {
    /// Unmaps everything, because the VMM may keep the container.
    fn drop(&mut self) {
        let mapped = std::mem::take(&mut *lock(&self.mapped));
        for (range, memory) in mapped {
            if let Err(error) = unmap(&*self.ops, range) {
                log::error!("{error}");
                // Devices may still reach it, so it stays mapped in this process.
                std::mem::forget(memory);
            }
        }
    }
}

impl DmaBackend for VfioOpsDma {
    fn map(&self, iova: Iova, memory: HostMemory) -> Result<AddressRange<Iova>, DmaError> {
        let len_bytes = memory.len_bytes();
        let range = AddressRange::new(iova, len_bytes as u64)
            .ok_or(DmaError::BadRange { iova, len_bytes })?;
        let mut mapped = lock(&self.mapped);
        // SAFETY: `memory` is kept in `mapped` until it is unmapped.
        let done = unsafe {
            self.ops
                .vfio_dma_map(iova.value(), len_bytes, memory.as_ptr())
        };
        done.map_err(|error| DmaError::Map {
            range,
            error: errno(error),
        })?;
        mapped.insert(range, memory);
        Ok(range)
    }

    fn unmap(&self, range: AddressRange<Iova>) -> Result<(), DmaError> {
        let mut mapped = lock(&self.mapped);
        if !mapped.contains_key(&range) {
            return Err(DmaError::NotMapped(range));
        }
        unmap(&*self.ops, range)?;
        mapped.remove(&range);
        Ok(())
    }
}

fn unmap(ops: &dyn VfioOps, range: AddressRange<Iova>) -> Result<(), DmaError> {
    let len_bytes = usize::try_from(range.len_bytes()).unwrap_or(usize::MAX);
    let done = ops.vfio_dma_unmap(range.start().value(), len_bytes);
    done.map_err(|error| DmaError::Unmap {
        range,
        error: errno(error),
    })
}

/// The kernel's error, if there is one.
fn errno(error: VfioError) -> io::Error {
    match error {
        VfioError::IommuDmaMap(error) | VfioError::IommuDmaUnmap(error) => error.into(),
        error => io::Error::other(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{GuestAddress, GuestMemoryMmap};
    use vmm_sys_util::errno::Error;

    /// Records calls, and refuses what is at or above 1 MiB.
    #[derive(Default)]
    struct FakeOps(Mutex<Vec<String>>);

    impl VfioOps for FakeOps {
        unsafe fn vfio_dma_map(
            &self,
            iova: u64,
            size: usize,
            _: *mut u8,
        ) -> vfio_ioctls::Result<()> {
            if iova >= 1 << 20 {
                return Err(VfioError::IommuDmaMap(Error::new(libc::EINVAL)));
            }
            lock(&self.0).push(format!("map {iova:#x} {size:#x}"));
            Ok(())
        }

        fn vfio_dma_unmap(&self, iova: u64, size: usize) -> vfio_ioctls::Result<()> {
            lock(&self.0).push(format!("unmap {iova:#x} {size:#x}"));
            Ok(())
        }
    }

    #[test]
    fn memory_is_kept_until_it_is_unmapped_and_the_rest_is_unmapped_at_the_end() {
        struct Tell(Arc<Mutex<Vec<String>>>);
        impl Drop for Tell {
            fn drop(&mut self) {
                lock(&self.0).push("dropped".to_owned());
            }
        }
        let ops = Arc::new(FakeOps::default());
        let dropped = Arc::new(Mutex::new(Vec::new()));
        let memory = || {
            let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x2000)]).unwrap();
            let start = HostMemory::of_guest(&memory)[0].1.as_ptr();
            // SAFETY: the memory belongs to the owner.
            unsafe { HostMemory::of_raw(start, 0x2000, false, (memory, Tell(dropped.clone()))) }
        };
        let dma = VfioOpsDma::new(ops.clone());
        let first = dma.map(Iova::new(0x1000), memory()).unwrap();
        dma.map(Iova::new(0x8000), memory()).unwrap();
        let refused = dma.map(Iova::new(1 << 20), memory());
        assert!(matches!(
            refused,
            Err(DmaError::Map { error, .. }) if error.raw_os_error() == Some(libc::EINVAL)
        ));
        assert_eq!(lock(&dropped).len(), 1, "what is not mapped is not kept");
        dma.unmap(first).unwrap();
        assert!(matches!(dma.unmap(first), Err(DmaError::NotMapped(_))));
        assert_eq!(lock(&dropped).len(), 2);
        drop(dma);
        assert_eq!(lock(&dropped).len(), 3);
        let expected = [
            "map 0x1000 0x2000",
            "map 0x8000 0x2000",
            "unmap 0x1000 0x2000",
            "unmap 0x8000 0x2000",
        ];
        assert_eq!(*lock(&ops.0), expected);
    }
}
