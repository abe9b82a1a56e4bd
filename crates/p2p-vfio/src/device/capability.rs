//! The two capability lists of a configuration space.

use iommu_group::spec::{self, cap, header, msi};

/// A capability and the offset of its header. The id is 8 bits in the first list and 16 bits in the second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Capability<Id> {
    pub(super) id: Id,
    pub(super) offset: u16,
}

/// Lists the capabilities in the first 256 bytes. A loop or an offset outside of the space ends the list.
pub(super) fn standard(config: &[u8]) -> Vec<Capability<u8>> {
    let mut found: Vec<Capability<u8>> = Vec::new();
    let status = word(config, header::STATUS).unwrap_or(0);
    if status & header::STATUS_CAPABILITIES == 0 {
        return found;
    }
    let head = config.get(usize::from(header::CAPABILITIES));
    let mut next = head.copied().unwrap_or(0) & !3;
    while usize::from(next) >= spec::HEADER_BYTES
        && found.iter().all(|c| c.offset != u16::from(next))
    {
        let at = usize::from(next);
        let (Some(&id), Some(&link)) = (config.get(at), config.get(at + 1)) else {
            break;
        };
        found.push(Capability {
            id,
            offset: u16::from(next),
        });
        next = link & !3;
    }
    found
}

/// Lists the capabilities from 0x100 on. A loop or an offset outside of the space ends the list.
pub(super) fn extended(config: &[u8]) -> Vec<Capability<u16>> {
    let mut found: Vec<Capability<u16>> = Vec::new();
    let mut next = spec::LEGACY_BYTES;
    while next >= spec::LEGACY_BYTES && found.iter().all(|c| c.offset != next) {
        let Some(header) = dword(config, next) else {
            break;
        };
        if header == 0 || header == u32::MAX {
            break;
        }
        let [low, high, mid, top] = header.to_le_bytes();
        found.push(Capability {
            id: u16::from_le_bytes([low, high]),
            offset: next,
        });
        next = (u16::from_le_bytes([mid, top]) >> 4) & !3;
    }
    found
}

/// Length in bytes of a capability in the first 256 bytes; 4, the header, for an unknown kind.
pub(super) fn len_bytes(config: &[u8], capability: Capability<u8>) -> u16 {
    let control = word(config, capability.offset.saturating_add(2)).unwrap_or(0);
    match capability.id {
        cap::POWER_MANAGEMENT | cap::ADVANCED_FEATURES => 8,
        cap::MSI_X => 12,
        // 64-bit addresses and per-vector masks make it longer.
        cap::MSI => {
            let address = if control & msi::CONTROL_64BIT != 0 {
                4
            } else {
                0
            };
            let masks = if control & msi::CONTROL_MASKING != 0 {
                8
            } else {
                0
            };
            12 + address + masks
        }
        // The third byte is the length (PCIe r6.0 §7.9.4).
        cap::VENDOR_SPECIFIC => (control & 0xff).max(4),
        // Version 2 (§7.5.3).
        cap::EXPRESS => 60,
        _ => 4,
    }
}

/// The little-endian word at `offset`; `None` beyond the end of the space.
fn word(config: &[u8], offset: u16) -> Option<u16> {
    let at = usize::from(offset);
    let bytes = config.get(at..at.checked_add(2)?)?;
    Some(u16::from_le_bytes(bytes.try_into().ok()?))
}

/// The little-endian dword at `offset`; `None` beyond the end of the space.
pub(super) fn dword(config: &[u8], offset: u16) -> Option<u32> {
    let at = usize::from(offset);
    let bytes = config.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(writes: &[(usize, &[u8])]) -> Vec<u8> {
        let mut bytes = vec![0; 4096];
        for (at, data) in writes {
            bytes[*at..*at + data.len()].copy_from_slice(data);
        }
        bytes
    }

    #[test]
    fn lists_are_walked_in_order() {
        let bytes = config(&[
            (0x06, &[0x10]),
            (0x34, &[0x50]),
            (0x50, &[0x11, 0x40]),
            (0x40, &[0x05, 0x00]),
            (0x100, &0x1501_000d_u32.to_le_bytes()),
            (0x150, &0x0001_000f_u32.to_le_bytes()),
        ]);
        let ids: Vec<u8> = standard(&bytes).iter().map(|c| c.id).collect();
        assert_eq!(ids, [0x11, 0x05]);
        let ids: Vec<u16> = extended(&bytes).iter().map(|c| c.id).collect();
        assert_eq!(ids, [0x0d, 0x0f]);
    }

    #[test]
    fn loops_end() {
        let bytes = config(&[
            (0x06, &[0x10]),
            (0x34, &[0x40]),
            (0x40, &[0x05, 0x50]),
            (0x50, &[0x11, 0x40]),
            (0x100, &0x1001_000d_u32.to_le_bytes()),
        ]);
        assert_eq!(standard(&bytes).len(), 2);
        assert_eq!(extended(&bytes).len(), 1);
    }

    #[test]
    fn without_the_status_bit_there_is_no_list() {
        assert!(standard(&config(&[(0x34, &[0x40]), (0x40, &[0x05, 0])])).is_empty());
    }

    #[test]
    fn truncated_and_all_ones_spaces_have_nothing_to_find() {
        for len in [0, 7, 0x35, 0x40, 0x41, 0x100, 0x102] {
            let ones = vec![0xff; len];
            assert!(standard(&ones).len() <= 64);
            assert!(extended(&ones).is_empty());
        }
    }
}
