//! The edge to the kernel: VFIO's ioctls and mappings of device memory. All unsafe code is here.
//!
//! ```text
//! VfioPci ──▶ Group ──▶ Container ◀── Type1 (what is mapped)
//! ```
//! One kernel object is one file and one struct; an arrow is an `Arc`, so that a device is closed
//! before its group leaves the container, whoever is dropped first. The rust-vmm crate vfio-ioctls
//! has none of these edges: it takes a group out of KVM and the container when the first of its
//! devices closes, and this project is about groups of several devices.

mod bar_mapping;
mod container;
mod group;
mod info;
mod irq;
mod type1;
mod vfio_pci;

use std::io;

pub(crate) use bar_mapping::BarMapping;
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
