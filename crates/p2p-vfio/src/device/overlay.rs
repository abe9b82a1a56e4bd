//! What the guest reads instead of the hardware's configuration space, as data.

use std::collections::BTreeMap;

use super::capability::Capability;

const HEADER_TYPE: u16 = 0x0e;
const EXPANSION_ROM: u16 = 0x30;
const INTERRUPT_PIN: u16 = 0x3d;

/// Extended capabilities that would be untrue or harmful in the guest's topology (PCIe r6.0 §7.8,
/// §7.9, §9.3, §10.5): their controls act on ports, IOMMU or functions that the guest does not see.
const HIDDEN: [(u16, &str); 8] = [
    (0x000d, "ACS"),
    (0x000e, "ARI"),
    (0x000f, "ATS"),
    (0x0010, "SR-IOV"),
    (0x0013, "PRI"),
    (0x0015, "resizable BAR"),
    (0x001b, "PASID"),
    (0x0024, "VF resizable BAR"),
];

/// Bytes of configuration space of which some bits are replaced: `(hw & !mask) | value`.
#[derive(Debug, Default)]
pub(super) struct Overlay {
    bytes: BTreeMap<u16, Patch>,
}

#[derive(Clone, Copy, Debug)]
struct Patch {
    mask: u8,
    value: u8,
}

impl Overlay {
    /// The overlay of an endpoint: one function, no ROM, pin INTA or none, no capability of [`HIDDEN`].
    pub(super) fn of_endpoint(extended: &[Capability], has_line: bool) -> Self {
        let mut overlay = Self::default();
        // A function of a multi-function device is alone in its slot of the guest.
        overlay.set(HEADER_TYPE, 0x80, 0);
        for byte in EXPANSION_ROM..EXPANSION_ROM + 4 {
            overlay.set(byte, 0xff, 0);
        }
        // The only function in its slot has INTA, whatever its pin is on the host (PCI r3.0 §2.2.6).
        overlay.set(INTERRUPT_PIN, 0xff, u8::from(has_line));
        for capability in extended {
            if let Some((_, name)) = HIDDEN.iter().find(|(id, _)| *id == capability.id) {
                log::debug!("{name} capability at {:#x} is hidden", capability.offset);
                // The null capability keeps its place and its next pointer (PCIe r6.0 §7.9.28).
                overlay.set(capability.offset, 0xff, 0);
                overlay.set(capability.offset + 1, 0xff, 0);
                overlay.set(capability.offset + 2, 0x0f, 0);
            }
        }
        overlay
    }

    /// Replaces what the hardware has from `offset` on.
    pub(super) fn replace(&mut self, offset: u16, bytes: &[u8]) {
        for (at, byte) in (offset..).zip(bytes) {
            self.set(at, 0xff, *byte);
        }
    }

    fn set(&mut self, offset: u16, mask: u8, value: u8) {
        self.bytes.insert(offset, Patch { mask, value });
    }

    /// Turns what the hardware said at `offset` into what the guest reads.
    pub(super) fn apply(&self, offset: u16, data: &mut [u8]) {
        for (at, byte) in (offset..).zip(data) {
            if let Some(patch) = self.bytes.get(&at) {
                *byte = (*byte & !patch.mask) | patch.value;
            }
        }
    }

    /// Whether the guest's writes to this byte are dropped: all of it is ours.
    pub(super) fn owns(&self, offset: u16) -> bool {
        self.bytes.get(&offset).is_some_and(|p| p.mask == 0xff)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hidden_capability_becomes_null_and_keeps_the_chain() {
        let acs = Capability {
            id: 0x000d,
            offset: 0x140,
        };
        let overlay = Overlay::of_endpoint(&[acs], false);
        let mut header = 0x1501_000d_u32.to_le_bytes();
        overlay.apply(0x140, &mut header);
        assert_eq!(u32::from_le_bytes(header), 0x1500_0000);
    }

    #[test]
    fn what_is_not_patched_is_the_hardwares() {
        let overlay = Overlay::of_endpoint(&[], false);
        let mut header = [0x12, 0x34, 0x80, 0xff];
        overlay.apply(0x0c, &mut header);
        assert_eq!(header, [0x12, 0x34, 0x00, 0xff]);
    }

    #[test]
    fn there_is_no_rom_and_no_intx() {
        let overlay = Overlay::of_endpoint(&[], false);
        let mut rom = [0xff; 4];
        overlay.apply(0x30, &mut rom);
        assert_eq!(rom, [0; 4]);
        assert!(overlay.owns(0x33) && overlay.owns(0x3d) && !overlay.owns(0x0e));
    }
}
