//! Guest-physical ranges that devices decode.

use std::collections::BTreeMap;

use iommu_group::{Address, AddressRange, Gpa};

/// Non-overlapping ranges, by start.
#[derive(Debug, Default)]
pub(crate) struct MmioClaims(BTreeMap<u64, AddressRange<Gpa>>);

impl MmioClaims {
    /// Claims `range`. Returns whether all of it was free.
    pub(crate) fn claim(&mut self, range: AddressRange<Gpa>) -> bool {
        // Ranges do not overlap, so only the last one that begins before the end of `range` can overlap it.
        let before = self.0.range(..range.end().value()).next_back();
        let is_free = before.is_none_or(|(_, other)| other.intersect(&range).is_none());
        if is_free {
            self.0.insert(range.start().value(), range);
        }
        is_free
    }

    /// Releases a range that was claimed with exactly these bounds.
    pub(crate) fn release(&mut self, range: AddressRange<Gpa>) {
        if self.0.get(&range.start().value()) == Some(&range) {
            self.0.remove(&range.start().value());
        }
    }

    /// All claimed ranges.
    pub(crate) fn all(&self) -> Vec<AddressRange<Gpa>> {
        self.0.values().copied().collect()
    }

    /// Number of claimed ranges.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, len_bytes: u64) -> AddressRange<Gpa> {
        AddressRange::new(Gpa::new(start), len_bytes).unwrap()
    }

    #[test]
    fn overlaps_of_every_kind_are_refused() {
        let mut claims = MmioClaims::default();
        assert!(claims.claim(range(0x1000, 0x1000)));
        for (start, len_bytes) in [
            (0x1000, 0x1000),
            (0xf00, 0x101),
            (0x1fff, 1),
            (0x1400, 16),
            (0, 0x10000),
        ] {
            assert!(!claims.claim(range(start, len_bytes)), "{start:#x}");
        }
        assert!(claims.claim(range(0xf00, 0x100)) && claims.claim(range(0x2000, 1)));
        assert_eq!(claims.len(), 3);
    }

    #[test]
    fn only_a_claimed_range_can_be_released() {
        let mut claims = MmioClaims::default();
        assert!(claims.claim(range(0x1000, 0x1000)));
        claims.release(range(0x1000, 0x800));
        claims.release(range(0x3000, 0x800));
        assert!(!claims.claim(range(0x1000, 16)));
        claims.release(range(0x1000, 0x1000));
        assert!(claims.claim(range(0x1000, 16)));
    }
}
