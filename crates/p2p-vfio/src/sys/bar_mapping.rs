//! A mapping of a piece of a device's BAR into this process.

#![allow(unsafe_code, reason = "mmap of a VFIO region")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;

/// Part of a BAR, mapped shared, readable and writable; unmapped when dropped.
///
/// The kernel takes the pages away while the device's memory decode is off and gives them back on
/// the next access (linux drivers/vfio/pci/vfio_pci_core.c: vfio_pci_mmap_huge_fault()), so the
/// mapping outlives every state of the device. Nothing in this process reads or writes it.
#[derive(Debug)]
pub(crate) struct BarMapping {
    addr: NonNull<u8>,
    len_bytes: usize,
}

// SAFETY: the mapping is only an address for KVM and the IOMMU; no thread dereferences it here.
unsafe impl Send for BarMapping {}
// SAFETY: as for Send.
unsafe impl Sync for BarMapping {}

impl BarMapping {
    /// Maps `len_bytes` bytes at `file_offset` of the VFIO device `device`.
    ///
    /// # Errors
    /// The errno of mmap(2): `EINVAL` for an offset or length that is not page-aligned or lies
    /// outside the region, `ENODEV` for a region that cannot be mapped.
    pub(crate) fn new(
        device: BorrowedFd<'_>,
        file_offset: u64,
        len_bytes: usize,
    ) -> io::Result<Self> {
        let offset = libc::off_t::try_from(file_offset)
            .map_err(|_| io::Error::from_raw_os_error(libc::EOVERFLOW))?;
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
        let addr = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len_bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                device.as_raw_fd(),
                offset,
            )
        };
        if addr == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let addr = NonNull::new(addr.cast()).ok_or_else(|| io::Error::other("mmap returned 0"))?;
        Ok(Self { addr, len_bytes })
    }

    pub(crate) fn as_ptr(&self) -> *mut u8 {
        self.addr.as_ptr()
    }

    pub(crate) fn len_bytes(&self) -> usize {
        self.len_bytes
    }
}

impl Drop for BarMapping {
    fn drop(&mut self) {
        // SAFETY: the range was returned by mmap with this length and is unmapped only here; KVM
        // slots and IOMMU mappings of it hold this object through `HostMemory`, so none is left.
        unsafe { libc::munmap(self.addr.as_ptr().cast(), self.len_bytes) };
    }
}
