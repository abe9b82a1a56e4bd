//! Ranges of a BAR to map: computed from the ranges that VFIO allows and the ranges that must trap.

use crate::pci::{Mappable, RegionInfo};

/// Page size of KVM and the IOMMU, in bytes.
const PAGE: u64 = 4096;

/// The ranges of a region to map, as (offset, length) in bytes: the ranges that VFIO allows, in whole pages, without
/// the pages that hold `traps` (MSI-X structures, which the VMM emulates).
///
/// A BAR smaller than a page has none: other registers can be in the rest of its page.
pub(super) fn mmap_ranges(info: &RegionInfo, traps: &[(u64, u64)]) -> Vec<(u64, u64)> {
    let allowed = match &info.mappable {
        Mappable::Nothing => return Vec::new(),
        Mappable::AllButMsix if !traps.is_empty() => return Vec::new(),
        Mappable::Whole | Mappable::AllButMsix => vec![(0, info.size_bytes)],
        Mappable::Areas(areas) => areas.clone(),
    };
    let mut pages: Vec<(u64, u64)> = allowed
        .into_iter()
        .filter_map(|(offset, len)| {
            let end = offset.saturating_add(len).min(info.size_bytes);
            Some((offset.checked_next_multiple_of(PAGE)?, end / PAGE * PAGE))
        })
        .collect();
    for (offset, len) in traps {
        let hole = (
            offset / PAGE * PAGE,
            offset.saturating_add(*len).div_ceil(PAGE) * PAGE,
        );
        pages = pages
            .into_iter()
            .flat_map(|(start, end)| [(start, end.min(hole.0)), (start.max(hole.1), end)])
            .filter(|(start, end)| start < end)
            .collect();
    }
    pages.retain(|(start, end)| start < end);
    pages
        .iter()
        .map(|(start, end)| (*start, end - start))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(size_bytes: u64) -> RegionInfo {
        RegionInfo {
            size_bytes,
            mappable: Mappable::Whole,
        }
    }

    #[test]
    fn a_plain_bar_is_mapped_whole() {
        assert_eq!(mmap_ranges(&whole(1 << 20), &[]), [(0, 1 << 20)]);
    }

    #[test]
    fn pages_with_msix_structures_are_left_out() {
        let areas = mmap_ranges(&whole(0x4000), &[(0x2000, 0x410), (0x3000, 8)]);
        assert_eq!(areas, [(0, 0x2000)]);
    }

    #[test]
    fn structures_that_are_not_page_aligned_take_their_pages_with_them() {
        let areas = mmap_ranges(&whole(0x8000), &[(0x2ff8, 0x10)]);
        assert_eq!(areas, [(0, 0x2000), (0x4000, 0x4000)]);
    }

    #[test]
    fn less_than_a_page_is_not_mapped() {
        assert_eq!(mmap_ranges(&whole(256), &[]), []);
    }

    #[test]
    fn areas_of_the_kernel_are_taken_in_whole_pages() {
        let info = RegionInfo {
            size_bytes: 0x10000,
            mappable: Mappable::Areas(vec![(0x800, 0x2800), (0xf000, 0x8000)]),
        };
        assert_eq!(
            mmap_ranges(&info, &[]),
            [(0x1000, 0x2000), (0xf000, 0x1000)]
        );
    }

    #[test]
    fn an_msix_bar_that_may_not_be_mapped_is_not() {
        let info = RegionInfo {
            size_bytes: 0x4000,
            mappable: Mappable::AllButMsix,
        };
        assert_eq!(mmap_ranges(&info, &[(0x2000, 16)]), []);
        assert_eq!(mmap_ranges(&info, &[]), [(0, 0x4000)]);
    }
}
