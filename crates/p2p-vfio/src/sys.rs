//! Kernel interface: ioctls of VFIO and mappings of device memory. All unsafe code is here.
//!
//! ```text
//! VfioPci ──▶ Group ──▶ Container ◀── Type1 (what is mapped)
//!    │
//!    └──────▶ AttachedCdev ──▶ Ioas (what is mapped) ──▶ Iommufd (what is pinned)
//! ```
//! Each kernel object has one file and one struct. An arrow is an `Arc`, so a device is closed before its group leaves
//! the container, in whatever order they are dropped. The rust-vmm crate vfio-ioctls lacks these edges: it removes a
//! group from KVM and the container when the first of its devices closes, but a group here has several devices.
//!
//! A VM uses either containers or iommufd for all its devices.

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
#[cfg(feature = "vfio-ioctls")]
pub(crate) use type1::container_ranges;
pub(crate) use vfio_pci::VfioPci;

/// The number of a VFIO ioctl (linux include/uapi/linux/vfio.h: `_IO(VFIO_TYPE, VFIO_BASE + nr)`).
const fn vfio_ioctl(nr: u8) -> libc::c_ulong {
    (b';' as libc::c_ulong) << 8 | (100 + nr as libc::c_ulong)
}

/// The result of a system call: its return value, or errno.
fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

/// Size of an argument structure, for its first field.
fn argsz<T>() -> u32 {
    u32::try_from(size_of::<T>()).unwrap_or(u32::MAX)
}

/// Ranges of I/O addresses from the kernel's first and last addresses; `None` if a pair is not a range.
fn usable_ranges(bounds: Vec<(u64, u64)>) -> Option<Vec<AddressRange<Iova>>> {
    let range = |(first, last): (u64, u64)| {
        let len_bytes = last.checked_sub(first)?.saturating_add(1);
        let start = Iova::new(first);
        // A range up to the very last address loses its last page: its exclusive end does not fit into 64 bits.
        AddressRange::new(start, len_bytes)
            .or_else(|| AddressRange::new(start, len_bytes.checked_sub(4096)?))
    };
    bounds.into_iter().map(range).collect()
}
