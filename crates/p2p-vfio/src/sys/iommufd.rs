//! `/dev/iommu`: the kernel object to which the IOMMU contexts and devices of one VM are bound.
//!
//! The ioctls are defined here, with the structures of iommufd-bindings: iommufd-ioctls has no `IOMMU_IOAS_COPY` and no
//! `IOMMU_IOAS_IOVA_RANGES`, and its mapping functions do not state how long the memory must live.

#![allow(unsafe_code, reason = "iommufd ioctls")]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use iommufd_bindings::{
    IOMMUFD_CMD_DESTROY, IOMMUFD_CMD_IOAS_ALLOC, IOMMUFD_CMD_IOAS_COPY,
    IOMMUFD_CMD_IOAS_IOVA_RANGES, IOMMUFD_CMD_IOAS_MAP, IOMMUFD_CMD_IOAS_MAP_FILE,
    IOMMUFD_CMD_IOAS_UNMAP, IOMMUFD_TYPE, iommu_destroy, iommu_ioas_alloc, iommu_ioas_copy,
    iommu_ioas_iova_ranges, iommu_ioas_map, iommu_ioas_map_file, iommu_ioas_unmap,
    iommufd_ioas_map_flags_IOMMU_IOAS_MAP_FIXED_IOVA as FIXED_IOVA,
    iommufd_ioas_map_flags_IOMMU_IOAS_MAP_READABLE as READABLE,
    iommufd_ioas_map_flags_IOMMU_IOAS_MAP_WRITEABLE as WRITEABLE,
};
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref};

use crate::memory::HostMemory;
use iommu_group::{Address, AddressRange, Iova};

use super::{argsz, check};

/// Mappings are at fixed I/O addresses, and devices can read and write them.
const FLAGS: u32 = FIXED_IOVA | READABLE | WRITEABLE;

/// Limit above what any IOMMU has, so that an invalid count is refused.
const MAX_RANGES: u32 = 4096;

/// The number of an iommufd ioctl (linux include/uapi/linux/iommufd.h: `_IO(IOMMUFD_TYPE, IOMMUFD_CMD_…)`).
const fn iommufd_ioctl(command: u32) -> libc::c_ulong {
    (IOMMUFD_TYPE as libc::c_ulong) << 8 | command as libc::c_ulong
}

/// Number of an I/O address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct IoasId(pub(super) u32);

/// An open `/dev/iommu`. Memory that is pinned in one of its address spaces can be copied to another.
#[derive(Debug)]
pub(super) struct IommuFile(File);

impl IommuFile {
    pub(super) fn open() -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/iommu")?;
        Ok(Self(file))
    }

    /// Wraps an iommufd that another process has opened.
    pub(super) fn of(file: OwnedFd) -> Self {
        Self(file.into())
    }

    /// Creates an address space without mappings.
    pub(super) fn allocate(&self) -> io::Result<IoasId> {
        let mut argument = iommu_ioas_alloc {
            size: argsz::<iommu_ioas_alloc>(),
            ..Default::default()
        };
        let request = iommufd_ioctl(IOMMUFD_CMD_IOAS_ALLOC);
        // SAFETY: the structure is complete.
        check(unsafe { ioctl_with_mut_ref(&self.0, request, &mut argument) })?;
        Ok(IoasId(argument.out_ioas_id))
    }

    /// Destroys an address space without attached devices.
    pub(super) fn destroy(&self, ioas: IoasId) -> io::Result<()> {
        let argument = iommu_destroy {
            size: argsz::<iommu_destroy>(),
            id: ioas.0,
        };
        let request = iommufd_ioctl(IOMMUFD_CMD_DESTROY);
        // SAFETY: the structure is complete.
        check(unsafe { ioctl_with_ref(&self.0, request, &argument) }).map(drop)
    }

    /// Maps memory of this process. The kernel pins it as soon as a device is attached.
    ///
    /// # Safety
    /// The caller keeps the memory until it is unmapped here and in every address space to which it was copied, or
    /// these address spaces are destroyed.
    pub(super) unsafe fn map(
        &self,
        ioas: IoasId,
        range: AddressRange<Iova>,
        memory: &HostMemory,
    ) -> io::Result<()> {
        let argument = iommu_ioas_map {
            size: argsz::<iommu_ioas_map>(),
            flags: FLAGS,
            ioas_id: ioas.0,
            user_va: memory.as_ptr() as u64,
            length: range.len_bytes(),
            iova: range.start().value(),
            ..Default::default()
        };
        let request = iommufd_ioctl(IOMMUFD_CMD_IOAS_MAP);
        // SAFETY: the structure is complete; the caller keeps the memory that it refers to.
        check(unsafe { ioctl_with_ref(&self.0, request, &argument) }).map(drop)
    }

    /// Copies the mapping `from` of another address space, which was made in one piece, without pinning the memory
    /// again.
    ///
    /// # Safety
    /// As for [`map`](Self::map).
    pub(super) unsafe fn copy(
        &self,
        (source, from): (IoasId, AddressRange<Iova>),
        (ioas, range): (IoasId, AddressRange<Iova>),
    ) -> io::Result<()> {
        let argument = iommu_ioas_copy {
            size: argsz::<iommu_ioas_copy>(),
            flags: FLAGS,
            dst_ioas_id: ioas.0,
            src_ioas_id: source.0,
            length: range.len_bytes(),
            dst_iova: range.start().value(),
            src_iova: from.start().value(),
        };
        let request = iommufd_ioctl(IOMMUFD_CMD_IOAS_COPY);
        // SAFETY: the structure is complete; the caller keeps the memory that it refers to.
        check(unsafe { ioctl_with_ref(&self.0, request, &argument) }).map(drop)
    }

    /// Maps all of a dma-buf, to which the kernel holds a reference from then on. The kernel revokes the mapping
    /// permanently when the exporting device stops decoding memory (linux drivers/iommu/iommufd/pages.c:
    /// iopt_revoke_notify()).
    pub(super) fn map_dma_buf(
        &self,
        ioas: IoasId,
        range: AddressRange<Iova>,
        dma_buf: BorrowedFd<'_>,
    ) -> io::Result<()> {
        let argument = iommu_ioas_map_file {
            size: argsz::<iommu_ioas_map_file>(),
            flags: FLAGS,
            ioas_id: ioas.0,
            fd: dma_buf.as_raw_fd(),
            start: 0,
            length: range.len_bytes(),
            iova: range.start().value(),
        };
        let request = iommufd_ioctl(IOMMUFD_CMD_IOAS_MAP_FILE);
        // SAFETY: the structure is complete, and the descriptor is open during the call.
        check(unsafe { ioctl_with_ref(&self.0, request, &argument) }).map(drop)
    }

    /// Unmaps `range`, which was mapped in one piece.
    pub(super) fn unmap(&self, ioas: IoasId, range: AddressRange<Iova>) -> io::Result<()> {
        let mut argument = iommu_ioas_unmap {
            size: argsz::<iommu_ioas_unmap>(),
            ioas_id: ioas.0,
            iova: range.start().value(),
            length: range.len_bytes(),
        };
        let request = iommufd_ioctl(IOMMUFD_CMD_IOAS_UNMAP);
        // SAFETY: the structure is complete.
        check(unsafe { ioctl_with_mut_ref(&self.0, request, &mut argument) })?;
        if argument.length != range.len_bytes() {
            let text = format!("the kernel unmapped {:#x} bytes", argument.length);
            return Err(io::Error::other(text));
        }
        Ok(())
    }

    /// First and last addresses of the ranges that can be mapped, ascending: without the reserved regions of the
    /// attached devices, and within the width of their IOMMU.
    pub(super) fn ranges(&self, ioas: IoasId) -> io::Result<Vec<(u64, u64)>> {
        let mut count = 32;
        loop {
            // struct iommu_iova_range: start, last.
            let mut ranges = vec![[0_u64; 2]; count as usize];
            let mut argument = iommu_ioas_iova_ranges {
                size: argsz::<iommu_ioas_iova_ranges>(),
                ioas_id: ioas.0,
                num_iovas: count,
                allowed_iovas: ranges.as_mut_ptr() as u64,
                ..Default::default()
            };
            let request = iommufd_ioctl(IOMMUFD_CMD_IOAS_IOVA_RANGES);
            // SAFETY: the structure is complete and names a buffer for the stated number of ranges.
            let asked = check(unsafe { ioctl_with_mut_ref(&self.0, request, &mut argument) });
            match asked {
                Ok(_) => {
                    ranges.truncate(argument.num_iovas as usize);
                    return Ok(ranges
                        .into_iter()
                        .map(|[start, last]| (start, last))
                        .collect());
                }
                Err(error)
                    if error.raw_os_error() == Some(libc::EMSGSIZE)
                        && (count + 1..=MAX_RANGES).contains(&argument.num_iovas) =>
                {
                    count = argument.num_iovas;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

impl AsRawFd for IommuFile {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.0.as_raw_fd()
    }
}
