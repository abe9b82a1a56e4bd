//! The two linked lists of capabilities.

use super::ConfigSpace;
use super::spec::{self, cap, ext, header};

/// An error in a configuration space, found while reading it. The affected part is skipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
pub enum ConfigError {
    /// A list of capabilities is a loop or is longer than the space allows.
    #[error("the list of capabilities at {at:#05x} has no end")]
    Endless {
        /// Offset at which the search stopped.
        at: u16,
    },
    /// A list of capabilities points into the header or to another place where no capability can be.
    #[error("the capability at {at:#05x} points to {to:#05x}, which is not a valid offset")]
    StrayPointer {
        /// Offset of the capability, or of the pointer in the header, that has the pointer.
        at: u16,
        /// The target of the pointer.
        to: u16,
    },
    /// A capability is outside of the readable bytes although all bytes should be readable.
    #[error("the capability at {at:#05x} could not be read")]
    Truncated {
        /// Offset of the capability.
        at: u16,
    },
}

/// Offsets of the capabilities that this crate uses, 0 if absent. As in Linux, the first capability of each kind is
/// used (linux 7.2 drivers/pci/pci.c: `pci_find_capability()`, `pci_find_ext_capability()`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct CapOffsets {
    pub(super) power_management: u16,
    pub(super) msi: u16,
    pub(super) msi_x: u16,
    pub(super) express: u16,
    pub(super) advanced_features: u16,
    pub(super) acs: u16,
    pub(super) ari: u16,
    pub(super) ats: u16,
    pub(super) sriov: u16,
    pub(super) cxl_port: u16,
    /// Whether a list continues beyond the bytes that were read.
    pub(super) cut: bool,
}

fn note(slot: &mut u16, at: u16) {
    if *slot == 0 {
        *slot = at;
    }
}

impl CapOffsets {
    /// Searches both lists. `layout` is the header layout; the bit `status` of the status register indicates a list.
    pub(super) fn find(
        space: &ConfigSpace,
        layout: u8,
        status: u16,
        faults: &mut Vec<ConfigError>,
    ) -> Self {
        let mut found = Self::default();
        if status & header::STATUS_CAPABILITIES != 0 {
            found.follow(space, layout, faults);
        }
        if space.visible() > spec::LEGACY_BYTES {
            found.follow_extended(space, faults);
        }
        found
    }

    fn follow(&mut self, space: &ConfigSpace, layout: u8, faults: &mut Vec<ConfigError>) {
        let mut at = match layout {
            0 | 1 => header::CAPABILITIES,
            2 => header::CARDBUS_CAPABILITIES,
            _ => return,
        };
        let mut next = space.u8(at).map(u16::from);
        for _ in 0..cap::MOST {
            let Some(pointer) = next else { break };
            if pointer == 0 {
                return;
            }
            if pointer < 0x40 {
                faults.push(ConfigError::StrayPointer { at, to: pointer });
                return;
            }
            at = pointer & 0xfc;
            let (Some(id), Some(pointer)) = (space.u8(at), space.u8(at.saturating_add(1))) else {
                self.cut = true;
                if space.visible() >= spec::LEGACY_BYTES {
                    faults.push(ConfigError::Truncated { at });
                }
                return;
            };
            match id {
                cap::POWER_MANAGEMENT => note(&mut self.power_management, at),
                cap::MSI => note(&mut self.msi, at),
                cap::EXPRESS => note(&mut self.express, at),
                cap::MSI_X => note(&mut self.msi_x, at),
                cap::ADVANCED_FEATURES => note(&mut self.advanced_features, at),
                0xff => return,
                _ => {}
            }
            next = Some(u16::from(pointer));
        }
        if next.is_some_and(|pointer| pointer != 0) {
            faults.push(ConfigError::Endless { at });
        }
    }

    fn follow_extended(&mut self, space: &ConfigSpace, faults: &mut Vec<ConfigError>) {
        let mut at = spec::LEGACY_BYTES;
        for _ in 0..ext::MOST {
            let Some(entry) = space.u32(at) else {
                self.cut = true;
                faults.push(ConfigError::Truncated { at });
                return;
            };
            if entry == 0 || entry == u32::MAX {
                return;
            }
            let [low, high, _, _] = entry.to_le_bytes();
            match u16::from_le_bytes([low, high]) {
                ext::ACS => note(&mut self.acs, at),
                ext::ARI => note(&mut self.ari, at),
                ext::ATS => note(&mut self.ats, at),
                ext::SRIOV => note(&mut self.sriov, at),
                ext::VENDOR_DESIGNATED if is_cxl_port(space, at) => note(&mut self.cxl_port, at),
                _ => {}
            }
            let Some(next) = next_extended(entry) else {
                return;
            };
            if next < spec::LEGACY_BYTES {
                faults.push(ConfigError::StrayPointer { at, to: next });
                return;
            }
            at = next;
        }
        faults.push(ConfigError::Endless { at });
    }
}

/// Offset of the next capability after one whose first doubleword is `entry`. `None` at the end of the list.
pub(super) fn next_extended(entry: u32) -> Option<u16> {
    u16::try_from((entry >> 20) & 0xffc)
        .ok()
        .filter(|next| *next != 0)
}

fn is_cxl_port(space: &ConfigSpace, at: u16) -> bool {
    let word = |offset: u16| space.u16(at.saturating_add(offset));
    word(spec::dvsec::VENDOR) == Some(spec::dvsec::CXL_VENDOR)
        && word(spec::dvsec::ID) == Some(spec::dvsec::CXL_PORT)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space(len: usize, bytes: &[(usize, u8)]) -> ConfigSpace {
        let mut all = vec![0; len];
        for (offset, byte) in bytes {
            all[*offset] = *byte;
        }
        ConfigSpace::new(&all)
    }

    fn find(space: &ConfigSpace, layout: u8) -> (CapOffsets, Vec<ConfigError>) {
        let mut faults = Vec::new();
        let found = CapOffsets::find(space, layout, header::STATUS_CAPABILITIES, &mut faults);
        (found, faults)
    }

    #[test]
    fn the_first_of_a_kind_counts() {
        let space = space(
            256,
            &[
                (0x34, 0x40),
                (0x40, 0x05),
                (0x41, 0x50),
                (0x50, 0x05),
                (0x51, 0x60),
                (0x60, 0x10),
            ],
        );
        let (found, faults) = find(&space, 0);
        assert_eq!((found.msi, found.express), (0x40, 0x60));
        assert_eq!(faults, []);
    }

    #[test]
    fn the_two_low_bits_of_a_pointer_are_not_part_of_it() {
        let (found, faults) = find(&space(256, &[(0x34, 0x43), (0x40, 0x10)]), 1);
        assert_eq!(found.express, 0x40);
        assert_eq!(faults, []);
    }

    #[test]
    fn without_the_status_bit_there_is_no_list() {
        let mut faults = Vec::new();
        let space = space(256, &[(0x34, 0x40), (0x40, 0x10)]);
        assert_eq!(
            CapOffsets::find(&space, 0, 0, &mut faults),
            CapOffsets::default()
        );
    }

    #[test]
    fn cardbus_has_its_pointer_elsewhere_and_unknown_layouts_have_none() {
        let bytes = [(0x14, 0x80), (0x34, 0x40), (0x40, 0x10), (0x80, 0x01)];
        let (found, _) = find(&space(256, &bytes), 2);
        assert_eq!((found.express, found.power_management), (0, 0x80));
        assert_eq!(find(&space(256, &bytes), 3).0, CapOffsets::default());
    }

    #[test]
    fn loops_end() {
        let (_, faults) = find(&space(256, &[(0x34, 0x40), (0x40, 0x05), (0x41, 0x40)]), 0);
        assert_eq!(faults, [ConfigError::Endless { at: 0x40 }]);
        let bytes = [(0x100, 0x01), (0x102, 0x01), (0x103, 0x10)];
        let (_, faults) = find(&space(4096, &bytes), 0);
        assert_eq!(faults, [ConfigError::Endless { at: 0x100 }]);
    }

    #[test]
    fn a_list_as_long_as_there_is_room_for_is_followed_to_its_end() {
        let mut all = vec![0; 256];
        all[0x34] = 0x40;
        for at in (0x40..0xfc).step_by(4) {
            all[at] = 0x09;
            all[at + 1] = u8::try_from(at + 4).unwrap();
        }
        all[0xfc] = 0x10;
        let (found, faults) = find(&ConfigSpace::new(&all), 0);
        assert_eq!((found.express, faults.as_slice()), (0xfc, &[][..]));
    }

    #[test]
    fn stray_pointers_end_a_list() {
        let (_, faults) = find(&space(256, &[(0x34, 0x10)]), 0);
        assert_eq!(faults, [ConfigError::StrayPointer { at: 0x34, to: 0x10 }]);
        // An extended capability at 0x100 that points to 0x0fc.
        let (_, faults) = find(
            &space(4096, &[(0x100, 0x01), (0x102, 0xc0), (0x103, 0x0f)]),
            0,
        );
        assert_eq!(
            faults,
            [ConfigError::StrayPointer {
                at: 0x100,
                to: 0xfc
            }]
        );
    }

    #[test]
    fn what_lies_beyond_the_file_is_cut() {
        let (found, faults) = find(&space(64, &[(0x34, 0x40)]), 0);
        assert!(found.cut);
        assert_eq!(
            faults,
            [],
            "64 bytes are all that an unprivileged reader gets"
        );
        let (found, faults) = find(
            &space(300, &[(0x100, 0x01), (0x102, 0x01), (0x103, 0x20)]),
            0,
        );
        assert!(found.cut);
        assert_eq!(faults, [ConfigError::Truncated { at: 0x200 }]);
    }

    #[test]
    fn all_ones_ends_a_list() {
        let mut all = vec![0xff; 4096];
        all[0x34] = 0x40;
        let (found, faults) = find(&ConfigSpace::new(&all), 0);
        assert_eq!((found, faults), (CapOffsets::default(), vec![]));
    }

    #[test]
    fn extended_capabilities_are_told_apart() {
        // ACS at 0x100 -> vendor-designated CXL port at 0x140 -> ATS at 0x180.
        let bytes = [
            (0x100, 0x0d),
            (0x102, 0x01),
            (0x103, 0x14),
            (0x140, 0x23),
            (0x142, 0x01),
            (0x143, 0x18),
            (0x144, 0x98),
            (0x145, 0x1e),
            (0x148, 0x03),
            (0x180, 0x0f),
            (0x182, 0x01),
        ];
        let (found, faults) = find(&space(4096, &bytes), 0);
        assert_eq!(
            (found.acs, found.cxl_port, found.ats),
            (0x100, 0x140, 0x180)
        );
        assert_eq!(faults, []);
    }
}
