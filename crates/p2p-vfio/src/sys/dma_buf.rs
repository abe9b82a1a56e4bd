//! Pieces of BARs as dma-bufs, from which iommufd maps a peer's BAR.

#![allow(
    unsafe_code,
    reason = "VFIO_DEVICE_FEATURE takes a structure of its own for each feature"
)]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

use vfio_bindings::bindings::vfio::{
    VFIO_DEVICE_FEATURE_DMA_BUF, VFIO_DEVICE_FEATURE_GET, VFIO_DEVICE_FEATURE_PROBE,
};
use vmm_sys_util::ioctl::ioctl_with_ref;

use super::{argsz, check, vfio_ioctl};

const FEATURE: libc::c_ulong = vfio_ioctl(17);

/// struct vfio_device_feature followed by struct vfio_device_feature_dma_buf with one range.
#[derive(Default)]
#[repr(C)]
struct Argument {
    argsz: u32,
    flags: u32,
    region_index: u32,
    open_flags: u32,
    dma_buf_flags: u32,
    nr_ranges: u32,
    offset: u64,
    length: u64,
}

/// One range of a BAR. It is revoked when the device stops decoding memory: importers that have mapped it lose the
/// mapping (linux drivers/vfio/pci/vfio_pci_dmabuf.c: vfio_pci_dma_buf_move()).
#[derive(Debug)]
pub(crate) struct DmaBuf(OwnedFd);

impl DmaBuf {
    /// Checks whether the device's driver can export BARs.
    ///
    /// # Errors
    /// `ENOTTY` if it does not.
    pub(super) fn probe(device: &File) -> io::Result<()> {
        let flags = VFIO_DEVICE_FEATURE_PROBE;
        request(device, flags, Argument::default()).map(drop)
    }

    /// Exports `len_bytes` bytes at `offset` of BAR `bar`, both in whole pages.
    ///
    /// # Errors
    /// `EINVAL` if these are not pages of the BAR, `ENODEV` if the BAR cannot be mapped into a process either.
    pub(super) fn export(
        device: &File,
        bar: u8,
        offset: u64,
        len_bytes: usize,
    ) -> io::Result<Self> {
        let open_flags = libc::O_RDWR | libc::O_CLOEXEC;
        let argument = Argument {
            region_index: u32::from(bar),
            open_flags: open_flags.cast_unsigned(),
            nr_ranges: 1,
            offset,
            length: len_bytes as u64,
            ..Argument::default()
        };
        let fd = request(device, 0, argument)?;
        // SAFETY: the kernel created this descriptor for this call and nothing else owns it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }
}

impl AsFd for DmaBuf {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn request(device: &File, flags: u32, mut argument: Argument) -> io::Result<libc::c_int> {
    argument.argsz = argsz::<Argument>();
    argument.flags = VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_DMA_BUF | flags;
    // SAFETY: the structure is complete and has the stated number of ranges.
    check(unsafe { ioctl_with_ref(device, FEATURE, &argument) })
}
