//! The bits of configuration space that the guest reads in place of the hardware's.

use std::collections::BTreeMap;
use std::ops::Range;

use iommu_group::spec::{acs, ext, header};

use super::capability::{self, Capability};

/// Extended capabilities that are wrong or harmful in the guest's topology (PCIe r6.0 §7.8, §7.9, §9.3, §10.5): their
/// controls act on ports, an IOMMU or functions that the guest does not see.
const HIDDEN: [(u16, &str, Length); 8] = [
    (ext::ACS, "ACS", Length::Acs),
    (ext::ARI, "ARI", Length::Fixed(0x08)),
    (ext::ATS, "ATS", Length::Fixed(0x08)),
    (ext::SRIOV, "SR-IOV", Length::Fixed(0x40)),
    (ext::PRI, "PRI", Length::Fixed(0x10)),
    (ext::RESIZABLE_BAR, "resizable BAR", Length::ResizableBars),
    (ext::PASID, "PASID", Length::Fixed(0x08)),
    (
        ext::VF_RESIZABLE_BAR,
        "VF resizable BAR",
        Length::ResizableBars,
    ),
];

/// Length of a capability.
#[derive(Clone, Copy)]
enum Length {
    /// A fixed number of bytes.
    Fixed(u16),
    /// Longer with an egress control vector (PCIe r6.0 §7.7.11).
    Acs,
    /// Two registers for each of its BARs (PCIe r6.0 §7.8.6).
    ResizableBars,
}

impl Length {
    /// Length in bytes of the capability at `offset` of a configuration space.
    fn bytes(self, config: &[u8], offset: u16) -> u16 {
        let register = |at: u16| capability::dword(config, offset.saturating_add(at)).unwrap_or(0);
        match self {
            Self::Fixed(len) => len,
            Self::Acs => {
                /// P2P egress control is supported.
                const EGRESS: u8 = 1 << 5;
                let [low, vector_bits, ..] = register(acs::CAPABILITY).to_le_bytes();
                match (low & EGRESS, vector_bits) {
                    (0, _) => 8,
                    // 0 encodes 256 bits.
                    (_, 0) => 8 + 32,
                    (_, bits) => 8 + u16::from(bits).div_ceil(32) * 4,
                }
            }
            Self::ResizableBars => {
                let [control, ..] = register(8).to_le_bytes();
                4 + 8 * u16::from((control >> 5).max(1))
            }
        }
    }
}

/// Bytes of configuration space of which some bits are replaced: `(hw & !mask) | value`.
#[derive(Debug, Default)]
pub(super) struct ConfigMask {
    bytes: BTreeMap<u16, Patch>,
    /// Hidden capabilities, headers included: writes are dropped, and bytes without a patch read as zero.
    hidden: Vec<Range<u16>>,
}

#[derive(Clone, Copy, Debug)]
struct Patch {
    mask: u8,
    value: u8,
}

impl ConfigMask {
    /// The mask of an endpoint: one function, no ROM, pin INTA or none, no capability of [`HIDDEN`].
    pub(super) fn of_endpoint(config: &[u8], has_line: bool) -> Self {
        let mut mask = Self::default();
        // A function of a multi-function device is the only function in its slot of the guest.
        mask.set(header::HEADER_TYPE, header::HEADER_TYPE_MULTIFUNCTION, 0);
        for byte in header::EXPANSION_ROM..header::EXPANSION_ROM + 4 {
            mask.set(byte, 0xff, 0);
        }
        // The only function in its slot has INTA, whatever its pin is on the host (PCI r3.0 §2.2.6).
        mask.set(header::INTERRUPT_PIN, 0xff, u8::from(has_line));
        for Capability { id, offset } in capability::extended(config) {
            let hidden = HIDDEN.iter().find(|(hidden, ..)| *hidden == id);
            if let Some((_, name, length)) = hidden {
                log::debug!("{name} capability at {offset:#x} is hidden");
                // The null capability keeps its place and its next pointer (PCIe r6.0 §7.9.28).
                for (at, bits) in (offset..).zip([0xff, 0xff, 0x0f, 0]) {
                    mask.set(at, bits, 0);
                }
                let end = offset.saturating_add(length.bytes(config, offset));
                mask.hidden.push(offset..end);
            }
        }
        mask
    }

    /// Replaces the hardware's bytes from `offset` on.
    pub(super) fn replace(&mut self, offset: u16, bytes: &[u8]) {
        for (at, byte) in (offset..).zip(bytes) {
            self.set(at, 0xff, *byte);
        }
    }

    fn set(&mut self, offset: u16, mask: u8, value: u8) {
        self.bytes.insert(offset, Patch { mask, value });
    }

    /// Replaces the masked bits in `data`, which was read from the hardware at `offset`.
    pub(super) fn apply(&self, offset: u16, data: &mut [u8]) {
        for (at, byte) in (offset..).zip(data) {
            if let Some(patch) = self.bytes.get(&at) {
                *byte = (*byte & !patch.mask) | patch.value;
            } else if self.hides(at) {
                *byte = 0;
            }
        }
    }

    /// Whether the mask replaces the whole byte, so that writes of the guest are dropped.
    pub(super) fn owns(&self, offset: u16) -> bool {
        self.hides(offset) || self.bytes.get(&offset).is_some_and(|p| p.mask == 0xff)
    }

    fn hides(&self, offset: u16) -> bool {
        self.hidden.iter().any(|hidden| hidden.contains(&offset))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_patched_is_the_hardwares() {
        let mask = ConfigMask::of_endpoint(&[], false);
        let mut header = [0x12, 0x34, 0x80, 0xff];
        mask.apply(0x0c, &mut header);
        assert_eq!(header, [0x12, 0x34, 0x00, 0xff]);
    }

    #[test]
    fn there_is_no_rom_and_no_intx() {
        let mask = ConfigMask::of_endpoint(&[], false);
        let mut rom = [0xff; 4];
        mask.apply(0x30, &mut rom);
        assert_eq!(rom, [0; 4]);
        assert!(mask.owns(0x33) && mask.owns(0x3d) && !mask.owns(0x0e));
    }
}
