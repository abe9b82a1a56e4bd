//! Placement in RAM: pure functions over the regions.

use iommu_group::{Address, Gpa};

use crate::layout::GpaRange;

/// The lowest range of `bytes` in one RAM region inside `bounds`.
pub(super) fn place_low(
    ram: &[GpaRange],
    bytes: u64,
    align: u64,
    bounds: GpaRange,
) -> Option<GpaRange> {
    ram.iter().find_map(|region| {
        let usable = region.intersect(&bounds)?;
        let start = usable.start().value().checked_next_multiple_of(align)?;
        GpaRange::new(Gpa::new(start), bytes).filter(|place| usable.contains(place))
    })
}

/// The highest range of `bytes` in one RAM region inside `bounds`.
pub(super) fn place_high(
    ram: &[GpaRange],
    bytes: u64,
    align: u64,
    bounds: GpaRange,
) -> Option<GpaRange> {
    ram.iter().rev().find_map(|region| {
        let usable = region.intersect(&bounds)?;
        let highest = usable.end().value().checked_sub(bytes)?;
        let start = highest - highest.checked_rem(align)?;
        GpaRange::new(Gpa::new(start), bytes).filter(|place| usable.contains(place))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: GpaRange = GpaRange::of_constants(0, u64::MAX);
    const RAM: [GpaRange; 3] = [
        GpaRange::of_constants(0, 0x5000),
        GpaRange::of_constants(0x8000, 0xa000),
        GpaRange::of_constants(0x1_0000, 0x1_8000),
    ];

    #[test]
    fn lowest_place_is_aligned_and_skips_regions_that_are_too_small() {
        assert_eq!(
            place_low(
                &RAM,
                0x2000,
                0x1000,
                GpaRange::of_constants(0x4001, u64::MAX)
            ),
            Some(GpaRange::of_constants(0x8000, 0xa000))
        );
        assert_eq!(
            place_low(&RAM, 0x6000, 0x1000, ALL),
            Some(GpaRange::of_constants(0x1_0000, 0x1_6000))
        );
        assert_eq!(place_low(&RAM, 0x9000, 0x1000, ALL), None);
    }

    #[test]
    fn highest_place_is_aligned_and_below_the_ceiling() {
        assert_eq!(
            place_high(&RAM, 0x1800, 0x1000, ALL),
            Some(GpaRange::of_constants(0x1_6000, 0x1_7800))
        );
        assert_eq!(
            place_high(&RAM, 0x1800, 0x1000, GpaRange::of_constants(0, 0xb000)),
            Some(GpaRange::of_constants(0x8000, 0x9800))
        );
        assert_eq!(
            place_high(&RAM, 0x1800, 0x1000, GpaRange::of_constants(0x4000, 0x9000)),
            None
        );
        assert_eq!(place_high(&RAM, u64::MAX, 0x1000, ALL), None);
    }
}
