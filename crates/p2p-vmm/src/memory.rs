//! Guest memory: one memfd, a shared mapping per RAM region.
#![allow(unsafe_code, reason = "memfd_create is a system call")]

use std::fs::File;
use std::io;
use std::os::fd::FromRawFd;
use std::sync::Arc;

use vm_memory::{FileOffset, GuestMemoryMmap};

use crate::layout::GpaRange;

/// Why there is no guest memory.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MemoryError {
    #[error("cannot create a memory file of {bytes} bytes for the guest")]
    Create { bytes: u64, source: io::Error },
    #[error("RAM region {region} is too large for this host")]
    TooLarge { region: GpaRange },
    #[error("cannot map guest memory")]
    Map(#[from] vm_memory::mmap::FromRangesError),
}

/// Allocates memory for `regions`; it is zero and takes no pages until it is touched.
pub(crate) fn allocate(regions: &[GpaRange]) -> Result<GuestMemoryMmap, MemoryError> {
    let bytes = regions.iter().map(GpaRange::len_bytes).sum();
    let file = memory_file(bytes).map_err(|source| MemoryError::Create { bytes, source })?;
    let file = Arc::new(file);
    let mut offset = 0;
    let mut ranges = Vec::with_capacity(regions.len());
    for region in regions {
        let len = usize::try_from(region.len_bytes())
            .map_err(|_| MemoryError::TooLarge { region: *region })?;
        let backing = FileOffset::from_arc(Arc::clone(&file), offset);
        ranges.push((region.start(), len, Some(backing)));
        offset += region.len_bytes();
    }
    Ok(GuestMemoryMmap::from_ranges_with_files(ranges)?)
}

fn memory_file(bytes: u64) -> io::Result<File> {
    // SAFETY: the name is a C string literal, and the call has no other memory arguments.
    let fd = unsafe { libc::memfd_create(c"guest-ram".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just created and nobody else owns it.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(bytes)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

    use super::*;

    #[test]
    fn regions_are_mapped_where_asked_and_share_nothing() {
        let regions = [
            GpaRange::new(0, 0x2000),
            GpaRange::new(0x10_0000, 0x10_1000),
        ];
        let memory = allocate(&regions).unwrap();
        memory.write_obj(0x11u8, GuestAddress(0x1fff)).unwrap();
        memory.write_obj(0x22u8, GuestAddress(0x10_0000)).unwrap();

        let mapped: Vec<_> = memory
            .iter()
            .map(|region| (region.start_addr().0, region.len()))
            .collect();
        assert_eq!(mapped, [(0, 0x2000), (0x10_0000, 0x1000)]);
        assert_eq!(
            memory.read_obj::<u8>(GuestAddress(0x1fff)).unwrap(),
            0x11,
            "the second region does not overlay the first"
        );
        assert!(memory.read_obj::<u8>(GuestAddress(0x2000)).is_err());
    }
}
