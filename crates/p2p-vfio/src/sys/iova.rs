//! Which I/O addresses a container's IOMMU can translate.

#![allow(
    unsafe_code,
    reason = "VFIO_IOMMU_GET_INFO fills a buffer of variable length"
)]

use std::io;
use std::os::fd::AsRawFd;

use vfio_bindings::bindings::vfio::{
    VFIO_IOMMU_INFO_CAPS, VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE, vfio_iommu_type1_info,
};
use vmm_sys_util::ioctl::ioctl_with_mut_ptr;
use vmm_sys_util::ioctl_io_nr;

use crate::address::{Address, AddressRange, Iova};

ioctl_io_nr!(VFIO_IOMMU_GET_INFO, 0x3b, 112);

const HEADER_BYTES: usize = size_of::<vfio_iommu_type1_info>();
/// More than a kernel will ever need: 256 ranges.
const MAX_BYTES: usize = 64 << 10;

/// The ranges that may be mapped: reserved regions (MSI doorbells, RMRR) are left out of them and
/// the IOMMU's width is their end (linux drivers/vfio/vfio_iommu_type1.c:
/// vfio_iommu_iova_build_caps()). The container must have a group.
///
/// # Errors
/// The errno of `VFIO_IOMMU_GET_INFO`; `ENODATA` from a kernel that tells no ranges.
pub(super) fn iova_ranges(container: &impl AsRawFd) -> io::Result<Vec<AddressRange<Iova>>> {
    let mut len_bytes = HEADER_BYTES;
    loop {
        let info = get_info(container, len_bytes)?;
        let wanted = field32(&info, 0).map_or(0, |argsz| argsz as usize);
        if wanted <= len_bytes || wanted > MAX_BYTES {
            return parse(&info).ok_or(io::Error::from_raw_os_error(libc::ENODATA));
        }
        len_bytes = wanted;
    }
}

fn get_info(container: &impl AsRawFd, len_bytes: usize) -> io::Result<Vec<u8>> {
    // Whole qwords, so that the buffer is aligned as the structure is.
    let mut buffer = vec![0_u64; len_bytes.div_ceil(8)];
    let argsz = u32::try_from(buffer.len() * 8).unwrap_or(u32::MAX);
    if let Some(first) = buffer.first_mut() {
        *first = u64::from(argsz);
    }
    // SAFETY: the kernel writes at most `argsz` bytes, which is the length of the buffer.
    let result =
        unsafe { ioctl_with_mut_ptr(container, VFIO_IOMMU_GET_INFO(), buffer.as_mut_ptr()) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(buffer
        .iter()
        .flat_map(|qword| qword.to_ne_bytes())
        .collect())
}

fn field32(bytes: &[u8], at: usize) -> Option<u32> {
    let field = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(field.try_into().ok()?))
}

fn field64(bytes: &[u8], at: usize) -> Option<u64> {
    let field = bytes.get(at..at.checked_add(8)?)?;
    Some(u64::from_ne_bytes(field.try_into().ok()?))
}

/// The ranges in a filled `vfio_iommu_type1_info` with its capability chain.
fn parse(info: &[u8]) -> Option<Vec<AddressRange<Iova>>> {
    if field32(info, 4)? & VFIO_IOMMU_INFO_CAPS == 0 {
        return None;
    }
    let mut capability = field32(info, 16)? as usize;
    while capability >= HEADER_BYTES {
        let id = field32(info, capability)? & 0xffff;
        if id == VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE {
            let count = field32(info, capability + 8)? as usize;
            return (0..count)
                .map(|n| {
                    let at = capability
                        .checked_add(16)?
                        .checked_add(n.checked_mul(16)?)?;
                    let (first, last) = (field64(info, at)?, field64(info, at + 8)?);
                    let len_bytes = last.checked_sub(first)?.saturating_add(1);
                    let start = Iova::new(first);
                    // A range up to the very last address loses its last page: no window ends there.
                    AddressRange::new(start, len_bytes)
                        .or_else(|| AddressRange::new(start, len_bytes.checked_sub(4096)?))
                })
                .collect();
        }
        let next = field32(info, capability + 4)? as usize;
        if next <= capability {
            return None;
        }
        capability = next;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(flags: u32, chain: &[&[u8]]) -> Vec<u8> {
        let total = HEADER_BYTES + chain.iter().map(|c| c.len()).sum::<usize>();
        let mut bytes = Vec::new();
        bytes.extend(u32::try_from(total).unwrap().to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend(4096_u64.to_ne_bytes());
        bytes.extend(24_u32.to_ne_bytes());
        bytes.extend([0; 4]);
        for capability in chain {
            bytes.extend(*capability);
        }
        bytes
    }

    fn ranges(next: u32, ranges: &[(u64, u64)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(1_u16.to_ne_bytes());
        bytes.extend(1_u16.to_ne_bytes());
        bytes.extend(next.to_ne_bytes());
        bytes.extend(u32::try_from(ranges.len()).unwrap().to_ne_bytes());
        bytes.extend([0; 4]);
        for (first, last) in ranges {
            bytes.extend(first.to_ne_bytes());
            bytes.extend(last.to_ne_bytes());
        }
        bytes
    }

    #[test]
    fn a_39_bit_iommu_with_an_msi_hole() {
        let known = [(0, 0xfedf_ffff), (0xfef0_0000, 0x7f_ffff_ffff)];
        let found = parse(&info(2, &[&ranges(0, &known)])).unwrap();
        let text: Vec<_> = found.iter().map(ToString::to_string).collect();
        assert_eq!(text, ["0x0..0xfee00000", "0xfef00000..0x8000000000"]);
    }

    #[test]
    fn other_capabilities_are_passed_over() {
        let mut other = ranges(0, &[]);
        other[0] = 3;
        let next = u32::try_from(HEADER_BYTES + other.len()).unwrap();
        other[4..8].copy_from_slice(&next.to_ne_bytes());
        let found = parse(&info(2, &[&other, &ranges(0, &[(0, 0xfff)])])).unwrap();
        assert_eq!(found.len(), 1);
    }

    #[test]
    fn the_whole_space_is_a_range() {
        let found = parse(&info(2, &[&ranges(0, &[(0, u64::MAX)])])).unwrap();
        assert_eq!(found[0].start(), Iova::new(0));
        assert!(found[0].len_bytes() > u64::MAX / 2);
    }

    #[test]
    fn kernels_that_tell_nothing_and_broken_chains_are_none() {
        assert_eq!(parse(&info(0, &[])), None);
        assert_eq!(parse(&info(2, &[])), None);
        let mut looping = ranges(24, &[]);
        looping[0] = 3;
        assert_eq!(parse(&info(2, &[&looping])), None);
        let mut long = ranges(0, &[(0, 1)]);
        long[8] = 200;
        assert_eq!(parse(&info(2, &[&long])), None);
    }
}
