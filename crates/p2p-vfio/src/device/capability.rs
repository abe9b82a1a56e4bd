//! The two capability lists of a configuration space.

/// Status register bit: there is a capability list (PCI r3.0 §6.2.3).
const STATUS: usize = 0x06;
const STATUS_HAS_LIST: u8 = 0x10;
const LIST_HEAD: usize = 0x34;
const EXTENDED_HEAD: u16 = 0x100;

/// A capability and where its header is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Capability {
    pub(super) id: u16,
    pub(super) offset: u16,
}

/// The capabilities in the first 256 bytes. A list that loops or leaves the space ends there.
pub(super) fn standard(config: &[u8]) -> Vec<Capability> {
    let has_list = config.get(STATUS).is_some_and(|s| s & STATUS_HAS_LIST != 0);
    let mut found: Vec<Capability> = Vec::new();
    if !has_list {
        return found;
    }
    let mut next = config.get(LIST_HEAD).copied().unwrap_or(0) & !3;
    while next >= 0x40 && found.iter().all(|c| c.offset != u16::from(next)) {
        let at = usize::from(next);
        let (Some(&id), Some(&link)) = (config.get(at), config.get(at + 1)) else {
            break;
        };
        found.push(Capability {
            id: u16::from(id),
            offset: u16::from(next),
        });
        next = link & !3;
    }
    found
}

/// The capabilities from 0x100 on. A list that loops or leaves the space ends there.
pub(super) fn extended(config: &[u8]) -> Vec<Capability> {
    let mut found: Vec<Capability> = Vec::new();
    let mut next = EXTENDED_HEAD;
    while next >= EXTENDED_HEAD && found.iter().all(|c| c.offset != next) {
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

/// How long a capability in the first 256 bytes is, in bytes; a header's four if its kind is not known.
pub(super) fn len_bytes(config: &[u8], capability: Capability) -> u16 {
    let at = usize::from(capability.offset);
    let byte = |offset: usize| config.get(at + offset).copied().unwrap_or(0);
    match capability.id {
        // Power management (PCI PM r1.2 §3.2), MSI-X (PCI r3.0 §6.8.2), advanced features.
        0x01 | 0x13 => 8,
        0x11 => 12,
        // MSI (PCI r3.0 §6.8.1): 64-bit addresses and per-vector masks make it longer.
        0x05 => 12 + u16::from(byte(2) >> 7 & 1) * 4 + u16::from(byte(3) & 1) * 8,
        // Vendor-specific: its third byte says (PCI r3.0 §6.7).
        0x09 => u16::from(byte(2)).max(4),
        // PCI Express, version 2 (PCIe r6.0 §7.5.3).
        0x10 => 60,
        _ => 4,
    }
}

/// The little-endian dword at `offset`, if the space reaches that far.
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
        let ids = |list: Vec<Capability>| list.iter().map(|c| c.id).collect::<Vec<_>>();
        assert_eq!(ids(standard(&bytes)), [0x11, 0x05]);
        assert_eq!(ids(extended(&bytes)), [0x0d, 0x0f]);
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
