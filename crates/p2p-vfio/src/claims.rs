//! Guest-physical ranges that devices decode.

use std::collections::BTreeMap;
use std::io;
use std::sync::Mutex;

use iommu_group::{Address, AddressRange, Gpa};

use crate::lock::lock;
use crate::vmm::AddressClaims;

/// Non-overlapping ranges, by start.
#[derive(Debug, Default)]
pub struct Claims(Mutex<BTreeMap<u64, AddressRange<Gpa>>>);

impl Claims {
    /// All claimed ranges, ascending.
    pub fn all(&self) -> Vec<AddressRange<Gpa>> {
        lock(&self.0).values().copied().collect()
    }
}

impl AddressClaims for Claims {
    fn claim(&self, range: AddressRange<Gpa>) -> io::Result<()> {
        let mut claimed = lock(&self.0);
        // Ranges do not overlap, so only the last one that begins before the end of `range` can overlap it.
        let before = claimed.range(..range.end().value()).next_back();
        if before.is_some_and(|(_, other)| other.intersect(&range).is_some()) {
            return Err(io::Error::from_raw_os_error(libc::EEXIST));
        }
        claimed.insert(range.start().value(), range);
        Ok(())
    }

    fn release(&self, range: AddressRange<Gpa>) {
        let mut claimed = lock(&self.0);
        if claimed.get(&range.start().value()) == Some(&range) {
            claimed.remove(&range.start().value());
        }
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
        let claims = Claims::default();
        assert!(claims.claim(range(0x1000, 0x1000)).is_ok());
        for (start, len_bytes) in [
            (0x1000, 0x1000),
            (0xf00, 0x101),
            (0x1fff, 1),
            (0x1400, 16),
            (0, 0x10000),
        ] {
            assert!(claims.claim(range(start, len_bytes)).is_err(), "{start:#x}");
        }
        for (start, len_bytes) in [(0xf00, 0x100), (0x2000, 1)] {
            assert!(claims.claim(range(start, len_bytes)).is_ok());
        }
        assert_eq!(claims.all().len(), 3);
    }

    #[test]
    fn only_a_claimed_range_can_be_released() {
        let claims = Claims::default();
        assert!(claims.claim(range(0x1000, 0x1000)).is_ok());
        claims.release(range(0x1000, 0x800));
        claims.release(range(0x3000, 0x800));
        assert!(claims.claim(range(0x1000, 16)).is_err());
        claims.release(range(0x1000, 0x1000));
        assert!(claims.claim(range(0x1000, 16)).is_ok());
    }
}
