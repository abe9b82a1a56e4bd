//! Guest memory: anonymous and private, with huge pages if the host has them.
#![allow(
    unsafe_code,
    reason = "madvise is a system call, and the C library's allocator has settings"
)]

use std::io;

use iommu_group::Address;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, MmapRegion};

use crate::layout::GpaRange;

/// Guest memory could not be allocated.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MemoryError {
    #[error("RAM region {region} is too large for this host")]
    TooLarge { region: GpaRange },
    #[error("cannot map guest memory")]
    Map(#[from] vm_memory::mmap::FromRangesError),
}

/// Allocates zeroed memory for `regions`. Pages are allocated on first access.
///
/// The first device pins all of it, page by page: huge pages reduce that work by a factor of 512.
pub(crate) fn allocate(regions: &[GpaRange]) -> Result<GuestMemoryMmap, MemoryError> {
    let mut ranges = Vec::with_capacity(regions.len());
    for region in regions {
        let len = usize::try_from(region.len_bytes())
            .map_err(|_| MemoryError::TooLarge { region: *region })?;
        ranges.push((GuestAddress(region.start().value()), len));
    }
    let memory = GuestMemoryMmap::from_ranges(&ranges)?;
    for region in memory.iter() {
        if let Err(error) = prefer_huge_pages(region) {
            log::info!("guest memory has small pages: {error}");
        }
    }
    Ok(memory)
}

/// Makes all threads allocate from one heap. Must be called while there is only the main thread.
///
/// By default threads have heaps of their own. To shrink one, the C library reads the host's overcommit setting from
/// a file (glibc 2.36 malloc/arena.c: `shrink_heap()`). A thread that may open no files is killed by its filter at
/// that call.
pub(crate) fn share_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt sets a number; it neither frees nor moves memory.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Returns freed heap memory to the host: building a VM needs more heap than running it.
pub(crate) fn return_freed() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim releases only memory that is not in use.
    unsafe {
        libc::malloc_trim(0);
    }
}

fn prefer_huge_pages(region: &MmapRegion) -> io::Result<()> {
    // SAFETY: the range is a mapping that `region` keeps; the advice changes no contents.
    let result =
        unsafe { libc::madvise(region.as_ptr().cast(), region.size(), libc::MADV_HUGEPAGE) };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestMemoryRegion};

    use super::*;

    #[test]
    fn regions_are_mapped_where_asked_and_share_nothing() {
        let regions = [
            GpaRange::of_constants(0, 0x2000),
            GpaRange::of_constants(0x10_0000, 0x10_1000),
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
