//! Reads the needed parts of a configuration space.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::ConfigSpace;
use super::list::{CapOffsets, next_extended};
use super::spec::{self, acs, ext, header};

/// A source of configuration space bytes.
pub trait ConfigSource {
    /// Reads bytes at `offset` into `buffer`. Returns the number of bytes read, 0 at the end.
    fn read_at(&self, offset: u16, buffer: &mut [u8]) -> io::Result<usize>;
}

impl ConfigSource for File {
    fn read_at(&self, offset: u16, buffer: &mut [u8]) -> io::Result<usize> {
        FileExt::read_at(self, buffer, u64::from(offset))
    }
}

impl ConfigSource for [u8] {
    fn read_at(&self, offset: u16, buffer: &mut [u8]) -> io::Result<usize> {
        let rest = self.get(usize::from(offset)..).unwrap_or_default();
        let len = rest.len().min(buffer.len());
        if let (Some(to), Some(from)) = (buffer.get_mut(..len), rest.get(..len)) {
            to.copy_from_slice(from);
        }
        Ok(len)
    }
}

impl ConfigSpace {
    /// Reads the header (128 bytes for a CardBus bridge). If the first 256 bytes contain capabilities, it also reads
    /// the rest of them. Of the extended capabilities it reads the first doubleword of each, and the body of those that
    /// this crate decodes. After a failed read, the space ends at that offset.
    pub fn collect<S: ConfigSource + ?Sized>(source: &S) -> Self {
        let mut space = Self::default();
        let status = space
            .fetch::<{ spec::HEADER_BYTES }>(source, 0)
            .then(|| space.u16(header::STATUS));
        let has_list = status.flatten().unwrap_or(0) & header::STATUS_CAPABILITIES != 0;
        let layout = space.u8(header::HEADER_TYPE).unwrap_or(0) & header::HEADER_TYPE_LAYOUT;
        if space.is_unreachable() {
            return space;
        }
        if !has_list {
            if layout == header::LAYOUT_CARDBUS {
                // The header of a CardBus bridge is longer: the subsystem IDs follow the first 64 bytes.
                space.fetch::<{ spec::HEADER_BYTES }>(source, 64);
            }
            return space;
        }
        if !space.fetch::<{ spec::LEGACY_BYTES as usize - spec::HEADER_BYTES }>(source, 64) {
            return space;
        }
        let found = CapOffsets::find(&space, layout, header::STATUS_CAPABILITIES, &mut Vec::new());
        if found.express != 0 {
            space.collect_extended(source);
        }
        space
    }

    /// Reads `N` bytes at `offset`. Returns whether all of them were read.
    fn fetch<const N: usize>(
        &mut self,
        source: &(impl ConfigSource + ?Sized),
        offset: u16,
    ) -> bool {
        let mut buffer = [0; N];
        let mut filled = 0;
        while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            let at = offset.saturating_add(u16::try_from(filled).unwrap_or(u16::MAX));
            match source.read_at(at, rest) {
                Ok(0) => break,
                Ok(len) => filled = filled.saturating_add(len).min(N),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        self.append(offset, buffer.get(..filled).unwrap_or_default());
        filled == N
    }

    fn collect_extended(&mut self, source: &(impl ConfigSource + ?Sized)) {
        // The list may have capabilities in any order, but runs must be in ascending order.
        let mut pieces: Vec<(u16, Self)> = Vec::new();
        let mut at = spec::LEGACY_BYTES;
        for _ in 0..ext::MOST {
            let mut piece = Self::default();
            if !piece.fetch::<4>(source, at) {
                // Nothing at 0x100: the space has 256 bytes, for Linux too. At other offsets, the space is cut off.
                if at != spec::LEGACY_BYTES {
                    self.visible_to(at);
                }
                self.visible_to(piece.visible());
                break;
            }
            self.visible_to(spec::EXTENDED_BYTES);
            let entry = piece.u32(at).unwrap_or(0);
            if entry == 0 || entry == u32::MAX || pieces.iter().any(|(start, _)| *start == at) {
                pieces.push((at, piece));
                break;
            }
            let body = at.saturating_add(4);
            match u16::try_from(entry & 0xffff).unwrap_or(0) {
                ext::ACS => {
                    piece.fetch::<8>(source, body);
                    let capability = piece.u16(at.saturating_add(acs::CAPABILITY)).unwrap_or(0);
                    if capability & 0x20 != 0 {
                        piece.fetch::<28>(source, body.saturating_add(8));
                    }
                }
                ext::ARI | ext::ATS => {
                    piece.fetch::<4>(source, body);
                }
                ext::SRIOV => {
                    piece.fetch::<60>(source, body);
                }
                ext::VENDOR_DESIGNATED => {
                    piece.fetch::<12>(source, body);
                }
                _ => {}
            }
            pieces.push((at, piece));
            match next_extended(entry) {
                Some(next) if next >= spec::LEGACY_BYTES => at = next,
                _ => break,
            }
        }
        pieces.sort_by_key(|(start, _)| *start);
        for (_, piece) in &pieces {
            for (start, bytes) in piece.runs() {
                self.append(start, bytes);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;
    use crate::config::Config;

    /// A source that records its reads.
    struct Watched {
        bytes: Vec<u8>,
        reads: RefCell<Vec<(u16, usize)>>,
    }

    impl ConfigSource for Watched {
        fn read_at(&self, offset: u16, buffer: &mut [u8]) -> io::Result<usize> {
            let len = self.bytes.as_slice().read_at(offset, buffer)?;
            self.reads.borrow_mut().push((offset, len));
            Ok(len)
        }
    }

    /// PCI Express at 0x40; AER at 0x100, SR-IOV at 0x160, ACS at 0x148, in this order.
    fn endpoint() -> Vec<u8> {
        let mut all = vec![0x5a; 4096];
        all[..0x40].fill(0);
        all[..4].copy_from_slice(&[0x86, 0x80, 0x3b, 0x15]);
        all[0x06] = 0x10;
        all[0x34] = 0x40;
        all[0x40..0x44].copy_from_slice(&[0x10, 0, 2, 0]);
        all[0x100..0x104].copy_from_slice(&[0x01, 0, 0x02, 0x16]);
        all[0x160..0x164].copy_from_slice(&[0x10, 0, 0x81, 0x14]);
        all[0x148..0x150].copy_from_slice(&[0x0d, 0, 1, 0, 0, 0, 0, 0]);
        all
    }

    fn watch(bytes: &[u8]) -> (ConfigSpace, Vec<(u16, usize)>) {
        let source = Watched {
            bytes: bytes.to_vec(),
            reads: RefCell::default(),
        };
        let space = ConfigSpace::collect(&source);
        (space, source.reads.into_inner())
    }

    #[test]
    fn only_what_is_needed_is_read() {
        let (space, reads) = watch(&endpoint());
        assert_eq!(
            reads,
            [
                (0, 64),
                (64, 192),
                (0x100, 4),
                (0x160, 4),
                (0x164, 60),
                (0x148, 4),
                (0x14c, 8)
            ]
        );
        assert_eq!(space.visible(), 4096);
        assert_eq!(space.u8(0x104), None);
        assert_eq!(
            Config::decode(&space),
            Config::decode(&ConfigSpace::new(&endpoint()))
        );
    }

    #[test]
    fn a_header_without_capabilities_is_all() {
        let mut all = endpoint();
        all[0x06] = 0;
        assert_eq!(watch(&all).1, [(0, 64)]);
    }

    #[test]
    fn the_header_of_a_cardbus_bridge_is_longer() {
        let mut all = endpoint();
        all[0x06] = 0;
        all[0x0e] = 0x02;
        let (space, reads) = watch(&all);
        assert_eq!(reads, [(0, 64), (64, 64)]);
        assert_eq!(
            Config::decode(&space),
            Config::decode(&ConfigSpace::new(&all[..256]))
        );
    }

    #[test]
    fn a_conventional_function_ends_at_256() {
        let mut all = endpoint();
        all[0x40..0x42].copy_from_slice(&[0x01, 0]);
        assert_eq!(watch(&all).1, [(0, 64), (64, 192)]);
    }

    #[test]
    fn visible_sizes() {
        let all = endpoint();
        for (len, visible) in [
            (0, 0),
            (40, 40),
            (64, 64),
            (128, 128),
            (256, 256),
            (258, 258),
            (4096, 4096),
        ] {
            assert_eq!(watch(&all[..len]).0.visible(), visible, "{len}");
        }
    }

    #[test]
    fn a_list_that_leaves_the_file_is_cut_short() {
        let space = watch(&endpoint()[..0x150]).0;
        let config = Config::decode(&space);
        assert_eq!(
            config.acs,
            crate::Acs::Unknown(crate::Unreadable::Truncated)
        );
        assert!(!config.faults.is_empty());
    }

    #[test]
    fn loops_are_read_once() {
        let mut all = endpoint();
        all[0x148..0x14c].copy_from_slice(&[0x0d, 0, 1, 0x10]);
        let (space, reads) = watch(&all);
        assert!(reads.len() < 10, "{reads:?}");
        assert_eq!(
            Config::decode(&space).faults,
            Config::decode(&ConfigSpace::new(&all)).faults
        );
    }

    #[test]
    fn the_egress_vector_comes_along() {
        let mut all = endpoint();
        all[0x14c..0x150].copy_from_slice(&[0x3f, 0, 0x3d, 0]);
        all[0x150..0x170].fill(0xff);
        all[0x160..0x164].copy_from_slice(&[0x10, 0, 0x81, 0x14]);
        let vector = Config::decode(&watch(&all).0)
            .acs
            .registers()
            .unwrap()
            .egress
            .unwrap();
        assert_eq!(vector.size(), 256);
        assert_eq!(vector.stops(3), Some(true));
    }
}
