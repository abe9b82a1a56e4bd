//! The bytes of a function's configuration space.

use std::fmt;

use super::spec;

/// What could be read of a function's configuration space.
///
/// Linux shows 64 bytes to a reader without `CAP_SYS_ADMIN` (128 of a CardBus bridge), else 256 or 4096
/// (linux 7.2 drivers/pci/pci-sysfs.c: `pci_read_config()`). Reads beyond that give `None`, never a made-up value.
/// The zeros at the end are not stored.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct ConfigSpace {
    bytes: Box<[u8]>,
    len: u16,
}

impl ConfigSpace {
    /// The bytes as read from offset 0; what is beyond 4096 is ignored.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Self {
        let bytes = bytes
            .get(..usize::from(spec::EXTENDED_BYTES))
            .unwrap_or(bytes);
        let used = bytes
            .iter()
            .rposition(|byte| *byte != 0)
            .map_or(0, |last| last.saturating_add(1));
        Self {
            bytes: bytes.get(..used).unwrap_or_default().into(),
            len: u16::try_from(bytes.len()).unwrap_or(spec::EXTENDED_BYTES),
        }
    }

    /// How many bytes could be read, 0 to 4096.
    #[must_use]
    pub fn len(&self) -> u16 {
        self.len
    }

    /// Whether nothing could be read.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The byte at `offset`; `None` if it was not read.
    #[must_use]
    pub fn u8(&self, offset: u16) -> Option<u8> {
        if offset >= self.len {
            return None;
        }
        Some(self.bytes.get(usize::from(offset)).copied().unwrap_or(0))
    }

    /// The little-endian word at `offset`; `None` if not all of it was read.
    #[must_use]
    pub fn u16(&self, offset: u16) -> Option<u16> {
        let low = self.u8(offset)?;
        let high = self.u8(offset.checked_add(1)?)?;
        Some(u16::from_le_bytes([low, high]))
    }

    /// The little-endian doubleword at `offset`; `None` if not all of it was read.
    #[must_use]
    pub fn u32(&self, offset: u16) -> Option<u32> {
        let low = self.u16(offset)?;
        let high = self.u16(offset.checked_add(2)?)?;
        Some(u32::from(low) | (u32::from(high) << 16))
    }

    /// The bytes up to the last that is not zero.
    #[must_use]
    pub fn significant(&self) -> &[u8] {
        &self.bytes
    }

    /// All bytes that were read.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = self.bytes.to_vec();
        bytes.resize(usize::from(self.len), 0);
        bytes
    }

    /// Whether the header reads as all ones: nobody answers at this address any more, or not in this power state.
    #[must_use]
    pub fn is_unreachable(&self) -> bool {
        let header = self.bytes.get(..spec::HEADER_BYTES).unwrap_or(&self.bytes);
        header.len() >= 16 && header.iter().all(|byte| *byte == 0xff)
    }
}

impl fmt::Debug for ConfigSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ConfigSpace({} bytes)", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_stop_where_the_file_stopped() {
        let space = ConfigSpace::new(&[0x86, 0x80, 0x00, 0x00, 0x00]);
        assert_eq!(space.len(), 5);
        assert_eq!(space.u16(0), Some(0x8086));
        assert_eq!(space.u16(3), Some(0));
        assert_eq!(space.u16(4), None);
        assert_eq!(space.u32(1), Some(0x80));
        assert_eq!(space.u32(2), None);
        assert_eq!(space.u8(5), None);
        assert_eq!(space.u16(u16::MAX), None);
        assert_eq!(space.u32(u16::MAX - 1), None);
    }

    #[test]
    fn zeros_at_the_end_cost_nothing_but_are_there() {
        let mut bytes = vec![0; 4096];
        bytes[10] = 7;
        let space = ConfigSpace::new(&bytes);
        assert_eq!(space.significant().len(), 11);
        assert_eq!(space.u32(4092), Some(0));
        assert_eq!(space.to_vec(), bytes);
        assert_ne!(space, ConfigSpace::new(&bytes[..256]));
    }

    #[test]
    fn more_than_a_configuration_space_is_cut() {
        assert_eq!(ConfigSpace::new(&[1; 5000]).len(), 4096);
        assert!(ConfigSpace::new(&[]).is_empty());
    }

    #[test]
    fn all_ones_is_unreachable_but_a_virtual_function_is_not() {
        assert!(ConfigSpace::new(&[0xff; 64]).is_unreachable());
        let mut vf = [0_u8; 64];
        vf[..4].fill(0xff);
        assert!(!ConfigSpace::new(&vf).is_unreachable());
        assert!(!ConfigSpace::new(&[]).is_unreachable());
    }
}
