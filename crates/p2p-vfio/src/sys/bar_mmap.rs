//! Mapping of a piece of a device's BAR into this process.

#![allow(unsafe_code, reason = "mmap of a VFIO region")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;

use super::dma_buf::DmaBuf;

/// Page sizes with which the kernel maps large BARs, largest first, in bytes.
const HUGE_PAGES: [usize; 2] = [1 << 30, 2 << 20];
const PAGE: usize = 4096;

/// Part of a BAR, mapped shared, readable and writable; unmapped when dropped.
///
/// The kernel removes the pages while the device's memory decode is off and restores them on the next access (linux
/// drivers/vfio/pci/vfio_pci_core.c: vfio_pci_mmap_huge_fault()), so the mapping is valid in every state of the device.
/// This process does not read or write it.
#[derive(Debug)]
pub(crate) struct BarMmap {
    addr: NonNull<u8>,
    len_bytes: usize,
    dma_buf: Option<DmaBuf>,
}

// SAFETY: the mapping is only an address for KVM and the IOMMU; no thread of this process dereferences it.
unsafe impl Send for BarMmap {}
// SAFETY: as for Send.
unsafe impl Sync for BarMmap {}

impl BarMmap {
    /// Maps `len_bytes` bytes at `file_offset` of the VFIO device `device`, which are at `bar_offset` bytes of their
    /// BAR.
    ///
    /// A BAR is aligned to its size. An address that is congruent to the offset in the BAR modulo a huge page is
    /// therefore congruent to the bus address, and the kernel can use huge pages.
    ///
    /// # Errors
    /// The errno of mmap(2): `EINVAL` for an offset or length that is not page-aligned or lies outside the region,
    /// `ENODEV` for a region that cannot be mapped.
    pub(crate) fn new(
        device: BorrowedFd<'_>,
        file_offset: u64,
        bar_offset: u64,
        len_bytes: usize,
    ) -> io::Result<Self> {
        let invalid = || io::Error::from_raw_os_error(libc::EINVAL);
        let offset = libc::off_t::try_from(file_offset)
            .map_err(|_| io::Error::from_raw_os_error(libc::EOVERFLOW))?;
        let bar_offset = usize::try_from(bar_offset).map_err(|_| invalid())?;
        if len_bytes == 0 || !len_bytes.is_multiple_of(PAGE) {
            return Err(invalid());
        }
        let align = alignment(len_bytes);
        let reserved = len_bytes.checked_add(align).ok_or_else(invalid)?;
        // SAFETY: a new mapping at an address chosen by the kernel touches no existing memory.
        let room = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                reserved,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if room == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let mut room = Room {
            addr: room.cast(),
            len_bytes: reserved,
        };
        let lead = lead(room.addr.addr(), bar_offset, align);
        room.cut_front(lead);
        let addr = room.addr;
        // SAFETY: the range is inside the reservation, which only this function uses.
        let mapped = unsafe {
            libc::mmap(
                addr.cast(),
                len_bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_FIXED,
                device.as_raw_fd(),
                offset,
            )
        };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // The mapping belongs to this function now; the rest of the reservation is released.
        room.addr = room.addr.wrapping_add(len_bytes);
        room.len_bytes -= len_bytes;
        let addr = NonNull::new(addr).ok_or_else(|| io::Error::other("mmap returned 0"))?;
        Ok(Self {
            addr,
            len_bytes,
            dma_buf: None,
        })
    }

    /// Adds the dma-buf by which peers on iommufd reach this piece.
    pub(super) fn with_dma_buf(self, dma_buf: DmaBuf) -> Self {
        let mut this = self;
        this.dma_buf = Some(dma_buf);
        this
    }

    pub(crate) fn dma_buf(&self) -> Option<&DmaBuf> {
        self.dma_buf.as_ref()
    }

    pub(crate) fn as_ptr(&self) -> *mut u8 {
        self.addr.as_ptr()
    }

    pub(crate) fn len_bytes(&self) -> usize {
        self.len_bytes
    }
}

impl Drop for BarMmap {
    fn drop(&mut self) {
        // SAFETY: the range was returned by mmap with this length and is unmapped only here; KVM
        // slots and IOMMU mappings of it hold this object through `HostMemory`, so none is left.
        unsafe { libc::munmap(self.addr.as_ptr().cast(), self.len_bytes) };
    }
}

/// Reserved address space, released when dropped.
struct Room {
    addr: *mut u8,
    len_bytes: usize,
}

impl Room {
    /// Releases the first `bytes` bytes.
    fn cut_front(&mut self, bytes: usize) {
        let front = Self {
            addr: self.addr,
            len_bytes: bytes,
        };
        self.addr = self.addr.wrapping_add(bytes);
        self.len_bytes -= bytes;
        drop(front);
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if self.len_bytes > 0 {
            // SAFETY: the range is part of a reservation in which nothing is mapped.
            unsafe { libc::munmap(self.addr.cast(), self.len_bytes) };
        }
    }
}

/// The largest page that fits into a mapping of this length.
fn alignment(len_bytes: usize) -> usize {
    let fits = HUGE_PAGES.into_iter().find(|page| len_bytes >= *page);
    fits.unwrap_or(PAGE)
}

/// Bytes from `addr` to the next address that is congruent to `offset` modulo `align`.
fn lead(addr: usize, offset: usize, align: usize) -> usize {
    offset.wrapping_sub(addr) & (align - 1)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    fn map(bar_offset: u64, len_bytes: usize) -> usize {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4 << 30).unwrap();
        let mapping = BarMmap::new(file.as_fd(), bar_offset, bar_offset, len_bytes).unwrap();
        assert_eq!(mapping.len_bytes(), len_bytes);
        mapping.as_ptr().addr()
    }

    #[test]
    fn large_bars_are_congruent_to_the_bus_modulo_huge_pages() {
        assert_eq!(map(0, 2 << 20) % (2 << 20), 0);
        assert_eq!(map(0x3000, 3 << 20) % (2 << 20), 0x3000);
        assert_eq!(map(0, 2 << 30) % (1 << 30), 0);
        assert_eq!(map(0x20_1000, 1 << 30) % (1 << 30), 0x20_1000);
    }

    #[test]
    fn the_next_congruent_address_is_less_than_one_page_away() {
        assert_eq!(lead(0x1000, 0, 0x20_0000), 0x1f_f000);
        assert_eq!(lead(0x20_0000, 0, 0x20_0000), 0);
        assert_eq!(lead(0x3000, 0x5000, 0x1000), 0);
    }

    #[test]
    fn odd_lengths_are_refused() {
        let file = tempfile::tempfile().unwrap();
        for len_bytes in [0, 100, PAGE + 1] {
            let error = BarMmap::new(file.as_fd(), 0, 0, len_bytes).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
        }
    }

    #[test]
    fn a_failed_mapping_leaves_no_room_reserved() {
        let (read_only, _) = std::os::unix::net::UnixStream::pair().unwrap();
        let error = BarMmap::new(read_only.as_fd(), 0, 0, PAGE).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
    }
}
