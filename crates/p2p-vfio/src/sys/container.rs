//! A VFIO container: the kernel's object for one IOMMU context.

#![allow(unsafe_code, reason = "VFIO container ioctls")]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use vfio_bindings::bindings::vfio::{
    VFIO_API_VERSION, VFIO_DMA_MAP_FLAG_READ, VFIO_DMA_MAP_FLAG_WRITE, VFIO_TYPE1v2_IOMMU,
    vfio_iommu_type1_dma_map, vfio_iommu_type1_dma_unmap,
};
use vmm_sys_util::ioctl::{ioctl, ioctl_with_mut_ref, ioctl_with_ref, ioctl_with_val};

use crate::memory::HostMemory;
use iommu_group::{Address, AddressRange, Iova};

use super::{argsz, check, vfio_ioctl};

const GET_API_VERSION: libc::c_ulong = vfio_ioctl(0);
const CHECK_EXTENSION: libc::c_ulong = vfio_ioctl(1);
const SET_IOMMU: libc::c_ulong = vfio_ioctl(2);
const MAP_DMA: libc::c_ulong = vfio_ioctl(13);
const UNMAP_DMA: libc::c_ulong = vfio_ioctl(14);

#[derive(Debug)]
pub(super) struct Container(File);

impl Container {
    /// Opens an empty container. Fails if the kernel does not have version 2 of the type1 IOMMU driver.
    pub(super) fn open() -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/vfio/vfio")?;
        // SAFETY: the ioctl has no argument.
        let version = check(unsafe { ioctl(&file, GET_API_VERSION) })?;
        let type1 = libc::c_ulong::from(VFIO_TYPE1v2_IOMMU);
        // SAFETY: the argument is a number.
        let has_type1 = check(unsafe { ioctl_with_val(&file, CHECK_EXTENSION, type1) })?;
        if u32::try_from(version) != Ok(VFIO_API_VERSION) || has_type1 != 1 {
            let text = "the kernel's VFIO has no type1v2 IOMMU driver (modprobe vfio_iommu_type1)";
            return Err(io::Error::other(text));
        }
        Ok(Self(file))
    }

    /// Sets the IOMMU driver, after the first group has joined the container.
    pub(super) fn set_type1(&self) -> io::Result<()> {
        let type1 = libc::c_ulong::from(VFIO_TYPE1v2_IOMMU);
        // SAFETY: the argument is a number.
        check(unsafe { ioctl_with_val(&self.0, SET_IOMMU, type1) }).map(drop)
    }

    /// Maps `memory` readable and writable at `range`.
    ///
    /// # Safety
    /// The caller keeps the memory until it is unmapped or the container has no group any more.
    pub(super) unsafe fn map(
        &self,
        range: AddressRange<Iova>,
        memory: &HostMemory,
    ) -> io::Result<()> {
        let argument = vfio_iommu_type1_dma_map {
            argsz: argsz::<vfio_iommu_type1_dma_map>(),
            flags: VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
            vaddr: memory.as_ptr() as u64,
            iova: range.start().value(),
            size: range.len_bytes(),
        };
        // SAFETY: the structure is complete; the caller keeps the memory that it refers to.
        check(unsafe { ioctl_with_ref(&self.0, MAP_DMA, &argument) }).map(drop)
    }

    /// Unmaps `range`, which was mapped in one piece.
    pub(super) fn unmap(&self, range: AddressRange<Iova>) -> io::Result<()> {
        let mut argument = vfio_iommu_type1_dma_unmap {
            argsz: argsz::<vfio_iommu_type1_dma_unmap>(),
            iova: range.start().value(),
            size: range.len_bytes(),
            ..Default::default()
        };
        // SAFETY: the structure is complete and no data follows it.
        check(unsafe { ioctl_with_mut_ref(&self.0, UNMAP_DMA, &mut argument) })?;
        if argument.size != range.len_bytes() {
            let text = format!("the kernel unmapped {:#x} bytes only", argument.size);
            return Err(io::Error::other(text));
        }
        Ok(())
    }
}

impl AsRawFd for Container {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
