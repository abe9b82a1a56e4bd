//! The bytes of a function's configuration space.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::spec;

/// Why part of a configuration space is unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "schema", schemars(rename = "Hidden"))]
pub enum Unreadable {
    /// Only the header is visible: the reader has no `CAP_SYS_ADMIN`.
    Unprivileged,
    /// The function does not respond: all bits read as one, or nothing could be read.
    Unreachable,
    /// The bytes end before the end of the capability.
    Truncated,
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unprivileged => "not readable without root",
            Self::Unreachable => "the function does not answer",
            Self::Truncated => "its configuration space is truncated",
        })
    }
}

/// The bytes read from a function's configuration space.
///
/// Linux shows 64 bytes to a reader without `CAP_SYS_ADMIN` (128 for a CardBus bridge), otherwise 256 or 4096 (linux
/// 7.2 drivers/pci/pci-sysfs.c: `pci_read_config()`). Only the needed bytes are read, because some devices fail when
/// unimplemented registers are read. The value of a byte that was not read is `None`.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct ConfigSpace {
    /// The bytes of all runs, one run after the other.
    bytes: Vec<u8>,
    /// The ranges that were read. They ascend, are not empty and do not touch each other.
    runs: Vec<Run>,
    visible: u16,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Run {
    start: u16,
    len: u16,
    /// Index of the first byte of the run in `bytes`.
    at: u16,
}

impl ConfigSpace {
    /// A space that was read completely: the bytes from offset 0. Bytes beyond 4096 are ignored.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Self {
        let mut space = Self::default();
        space.append(0, bytes);
        space.visible = space.bytes_len();
        space
    }

    fn bytes_len(&self) -> u16 {
        u16::try_from(self.bytes.len()).unwrap_or(spec::EXTENDED_BYTES)
    }

    /// Records that at least `visible` bytes are visible.
    pub(crate) fn visible_to(&mut self, visible: u16) {
        self.visible = self.visible.max(visible.min(spec::EXTENDED_BYTES));
    }

    /// Adds bytes read at `offset`. Bytes before the end of the last run are dropped, and so are bytes beyond the end
    /// of the space.
    pub(crate) fn append(&mut self, offset: u16, bytes: &[u8]) {
        let end = self
            .runs
            .last()
            .map_or(0, |run| run.start.saturating_add(run.len));
        let start = offset.max(end);
        let room = spec::EXTENDED_BYTES.saturating_sub(start);
        let bytes = bytes
            .get(usize::from(start.saturating_sub(offset))..)
            .unwrap_or_default();
        let bytes = bytes.get(..usize::from(room)).unwrap_or(bytes);
        let len = u16::try_from(bytes.len()).unwrap_or(0);
        if len == 0 {
            return;
        }
        match self.runs.last_mut() {
            Some(last) if start == end => last.len = last.len.saturating_add(len),
            _ => self.runs.push(Run {
                start,
                len,
                at: self.bytes_len(),
            }),
        }
        self.bytes.extend_from_slice(bytes);
        self.visible = self.visible.max(start.saturating_add(len));
    }

    /// Number of visible bytes, 0 to 4096.
    #[must_use]
    pub fn visible(&self) -> u16 {
        self.visible
    }

    /// Whether nothing was read.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The byte at `offset`. `None` if it was not read.
    #[must_use]
    pub fn u8(&self, offset: u16) -> Option<u8> {
        let [byte] = self.array(offset)?;
        Some(byte)
    }

    /// The little-endian word at `offset`. `None` if it was not read completely.
    #[must_use]
    pub fn u16(&self, offset: u16) -> Option<u16> {
        self.array(offset).map(u16::from_le_bytes)
    }

    /// The little-endian doubleword at `offset`. `None` if it was not read completely.
    #[must_use]
    pub fn u32(&self, offset: u16) -> Option<u32> {
        self.array(offset).map(u32::from_le_bytes)
    }

    fn array<const N: usize>(&self, offset: u16) -> Option<[u8; N]> {
        let run = self.runs.iter().rfind(|run| run.start <= offset)?;
        let inside = usize::from(offset.checked_sub(run.start)?);
        let end = inside.checked_add(N)?;
        if end > usize::from(run.len) {
            return None;
        }
        let at = usize::from(run.at);
        let bytes = self
            .bytes
            .get(at.checked_add(inside)?..at.checked_add(end)?)?;
        bytes.try_into().ok()
    }

    /// The ranges that were read: offset and bytes of each.
    pub fn runs(&self) -> impl Iterator<Item = (u16, &[u8])> {
        self.runs.iter().map(|run| {
            let start = usize::from(run.at);
            let end = start.saturating_add(usize::from(run.len));
            (run.start, self.bytes.get(start..end).unwrap_or_default())
        })
    }

    /// Whether the header reads as all ones: the device is gone or does not respond in its power state.
    #[must_use]
    pub fn is_unreachable(&self) -> bool {
        self.array::<{ spec::HEADER_BYTES }>(0)
            .is_some_and(|header| header.iter().all(|byte| *byte == 0xff))
    }
}

impl fmt::Debug for ConfigSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "ConfigSpace({} of {} bytes read)",
            self.bytes.len(),
            self.visible
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_stop_where_the_file_stopped() {
        let space = ConfigSpace::new(&[0x86, 0x80, 0x00, 0x00, 0x00]);
        assert_eq!(space.visible(), 5);
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
    fn what_was_not_read_is_not_there() {
        let mut space = ConfigSpace::new(&[1; 64]);
        space.append(0x100, &[2; 8]);
        space.append(0x108, &[3; 4]);
        space.append(0x200, &[4; 4]);
        assert_eq!(space.u32(60), Some(0x0101_0101));
        assert_eq!(space.u32(62), None);
        assert_eq!(space.u8(64), None);
        assert_eq!(space.u8(0xff), None);
        assert_eq!(space.u32(0x106), Some(0x0303_0202));
        assert_eq!(space.u8(0x10c), None);
        assert_eq!(space.u32(0x200), Some(0x0404_0404));
        let runs: Vec<_> = space.runs().map(|(at, bytes)| (at, bytes.len())).collect();
        assert_eq!(runs, [(0, 64), (0x100, 12), (0x200, 4)]);
        assert_eq!(space.visible(), 0x204);
    }

    #[test]
    fn what_comes_twice_is_taken_once() {
        let mut space = ConfigSpace::new(&[1; 8]);
        space.append(4, &[2; 8]);
        space.append(0, &[3; 4]);
        assert_eq!(
            space,
            ConfigSpace::new(&[1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2])
        );
    }

    #[test]
    fn more_than_a_configuration_space_is_cut() {
        assert_eq!(ConfigSpace::new(&[1; 5000]).visible(), 4096);
        let mut space = ConfigSpace::new(&[1; 4]);
        space.append(4094, &[2; 4]);
        space.append(u16::MAX, &[2; 4]);
        assert_eq!((space.u16(4094), space.u8(4096)), (Some(0x0202), None));
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
