//! The edge to the kernel: VFIO's ioctls and mappings of device memory. All unsafe code is here.
//!
//! ```text
//! VfioPci ──▶ Group ──▶ Container ◀── Type1 (what is mapped)
//!    │
//!    └──────▶ AttachedCdev ──▶ Ioas (what is mapped) ──▶ Iommufd (what is pinned)
//! ```
//! One kernel object is one file and one struct; an arrow is an `Arc`, so that a device is closed
//! before its group leaves the container, whoever is dropped first. The rust-vmm crate vfio-ioctls
//! has none of these edges: it takes a group out of KVM and the container when the first of its
//! devices closes, and this project is about groups of several devices.
//!
//! Containers or iommufd: a VM has all its devices through one of the two.

mod bar_mmap;
mod cdev;
mod container;
mod dma_buf;
mod dmabuf_probe;
mod group;
mod info;
mod ioas;
mod iommufd;
mod irq;
mod kvm;
mod type1;
mod vfio_pci;

use std::io;

use iommu_group::{Address, AddressRange, Iova};

pub(crate) use bar_mmap::BarMmap;
pub(crate) use cdev::Cdev;
pub(crate) use dmabuf_probe::probe_dmabuf;
pub(crate) use ioas::{Ioas, Iommufd};
pub(crate) use type1::Type1;
pub(crate) use vfio_pci::VfioPci;

/// The number of a VFIO ioctl (linux include/uapi/linux/vfio.h: `_IO(VFIO_TYPE, VFIO_BASE + nr)`).
const fn vfio_ioctl(nr: u8) -> libc::c_ulong {
    (b';' as libc::c_ulong) << 8 | (100 + nr as libc::c_ulong)
}

/// The result of a system call: what it returned, or errno.
fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

/// The size of an argument structure, as its first field says it.
fn argsz<T>() -> u32 {
    u32::try_from(size_of::<T>()).unwrap_or(u32::MAX)
}

/// Ranges of I/O addresses out of the kernel's first and last addresses; `None` if these are no ranges.
fn usable_ranges(bounds: Vec<(u64, u64)>) -> Option<Vec<AddressRange<Iova>>> {
    let range = |(first, last): (u64, u64)| {
        let len_bytes = last.checked_sub(first)?.saturating_add(1);
        let start = Iova::new(first);
        // A range up to the very last address loses its last page: nothing ends there.
        AddressRange::new(start, len_bytes)
            .or_else(|| AddressRange::new(start, len_bytes.checked_sub(4096)?))
    };
    bounds.into_iter().map(range).collect()
}
