//! Mappings of special memory: device registers, and a page with a known physical address.

#![allow(
    unsafe_code,
    reason = "mapping memory and volatile access have no safe form"
)]

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;

use rustix::mm::{MapFlags, ProtFlags};

/// Size of a page, in bytes.
pub(crate) const PAGE: usize = 4096;

/// A mapping that is accessed in whole words.
pub(crate) struct Mapping {
    start: NonNull<u8>,
    size: usize,
}

impl Mapping {
    /// Maps the start of a file, such as a BAR in sysfs.
    pub(crate) fn of_file(file: &File, size: usize) -> io::Result<Self> {
        Self::of_file_at(file, 0, size)
    }

    /// Maps a part of a file, such as physical memory at an address in `/dev/mem`.
    pub(crate) fn of_file_at(file: &File, offset: u64, size: usize) -> io::Result<Self> {
        // SAFETY: the kernel chooses the address, so no existing mapping is replaced.
        let start = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                size,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                file.as_fd(),
                offset,
            )
        }?;
        Self::new(start.cast(), size)
    }

    /// Maps one page of memory and locks it.
    pub(crate) fn locked_page() -> io::Result<Self> {
        // SAFETY: the kernel chooses the address, so no existing mapping is replaced.
        let start = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                PAGE,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::LOCKED,
            )
        }?;
        Self::new(start.cast(), PAGE)
    }

    fn new(start: *mut u8, size: usize) -> io::Result<Self> {
        let start = NonNull::new(start).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { start, size })
    }

    pub(crate) fn read_u32(&self, offset: usize) -> io::Result<u32> {
        let place = self.place::<u32>(offset)?;
        // SAFETY: `place` is aligned and inside the mapping, which lives as long as `self`.
        Ok(unsafe { place.read_volatile() })
    }

    pub(crate) fn write_u32(&self, offset: usize, value: u32) -> io::Result<()> {
        let place = self.place::<u32>(offset)?;
        // SAFETY: as above. The access is volatile because devices write to the page too.
        unsafe { place.write_volatile(value) };
        Ok(())
    }

    pub(crate) fn read_u64(&self, offset: usize) -> io::Result<u64> {
        let place = self.place::<u64>(offset)?;
        // SAFETY: `place` is aligned and inside the mapping, which lives as long as `self`.
        Ok(unsafe { place.read_volatile() })
    }

    pub(crate) fn write_u64(&self, offset: usize, value: u64) -> io::Result<()> {
        let place = self.place::<u64>(offset)?;
        // SAFETY: `place` is aligned and inside the mapping, which lives as long as `self`.
        unsafe { place.write_volatile(value) };
        Ok(())
    }

    /// Transfers a page from `at` in the file to the start of the mapping, through the file's driver.
    pub(crate) fn read_file(&self, file: &File, at: u64) -> io::Result<()> {
        // SAFETY: the mapping holds a page, and nothing else accesses it during the call.
        let page = unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), PAGE) };
        file.read_exact_at(page, at)
    }

    /// Transfers the first page of the mapping to `at` in the file, through the file's driver.
    pub(crate) fn write_file(&self, file: &File, at: u64) -> io::Result<()> {
        // SAFETY: the mapping holds a page, and nothing else accesses it during the call.
        let page = unsafe { std::slice::from_raw_parts(self.start.as_ptr(), PAGE) };
        file.write_all_at(page, at)
    }

    fn place<T>(&self, offset: usize) -> io::Result<*mut T> {
        let width = size_of::<T>();
        let fits = offset
            .checked_add(width)
            .is_some_and(|end| end <= self.size);
        if !fits || !offset.is_multiple_of(width) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("no {width} bytes at {offset:#x} of {:#x}", self.size),
            ));
        }
        Ok(self.start.as_ptr().wrapping_add(offset).cast())
    }

    /// Guest-physical address of the page at the start (Linux Documentation/admin-guide/mm/pagemap.rst).
    pub(crate) fn physical_address(&self) -> io::Result<u64> {
        const PRESENT: u64 = 1 << 63;
        const FRAME: u64 = (1 << 55) - 1;
        let page = u64::try_from(self.start.as_ptr().addr() / PAGE).map_err(io::Error::other)?;
        let mut entry = [0; 8];
        File::open("/proc/self/pagemap")?.read_exact_at(&mut entry, page.saturating_mul(8))?;
        let entry = u64::from_le_bytes(entry);
        let frame = entry & FRAME;
        if entry & PRESENT == 0 || frame == 0 {
            return Err(io::Error::other(
                "the kernel does not tell physical addresses",
            ));
        }
        Ok(frame.saturating_mul(PAGE as u64))
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: `start` and `size` are what mmap returned, and no borrow of the mapping is left.
        let unmapped = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.size) };
        debug_assert_eq!(unmapped, Ok(()), "these were the arguments of a mapping");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_stay_inside_and_aligned() {
        let page = Mapping::locked_page().unwrap();
        page.write_u32(PAGE - 4, 7).unwrap();
        assert_eq!(page.read_u32(PAGE - 4).unwrap(), 7);
        assert!(page.write_u64(PAGE - 4, 7).is_err());
        assert!(page.read_u32(2).is_err());
        assert!(page.read_u64(usize::MAX - 3).is_err());
    }
}
