//! The MSI capability as the guest programs it (PCI r3.0 §6.8.1).

use iommu_group::spec::msi;

use crate::vmm::MsiMessage;

const LEN: usize = 24;

/// Shadow of the capability. VFIO programs the hardware's copy.
#[derive(Debug)]
pub(super) struct Msi {
    offset: u16,
    len: u16,
    bytes: [u8; LEN],
    writable: [u8; LEN],
}

impl Msi {
    /// Creates the shadow of the hardware's capability at `offset` with its message control register.
    pub(super) fn new(offset: u16, id_and_next: [u8; 2], control: u16) -> Self {
        let is_64bit = control & msi::CONTROL_64BIT != 0;
        let maskable = control & msi::CONTROL_MASKING != 0;
        let data = msi::ADDRESS + if is_64bit { 8 } else { 4 };
        let len = data + if maskable { 12 } else { 2 };
        let mut writable = [0; LEN];
        writable[usize::from(msi::CONTROL)] = 0x71;
        for at in msi::ADDRESS..data + 2 {
            writable[usize::from(at)] = 0xff;
        }
        writable[usize::from(msi::ADDRESS)] = 0xfc;
        if maskable {
            for at in data + 4..data + 8 {
                writable[usize::from(at)] = 0xff;
            }
        }
        let mut bytes = [0; LEN];
        bytes[..2].copy_from_slice(&id_and_next);
        // MSI is off, with one vector allocated.
        bytes[2..4].copy_from_slice(
            &(control & !(msi::CONTROL_ENABLE | msi::CONTROL_VECTORS)).to_le_bytes(),
        );
        Self {
            offset,
            len,
            bytes,
            writable,
        }
    }

    fn locate(&self, offset: u16) -> Option<usize> {
        let at = offset.checked_sub(self.offset)?;
        (at < self.len).then_some(usize::from(at))
    }

    /// The byte at a configuration offset; `None` outside of the capability.
    pub(super) fn read(&self, offset: u16) -> Option<u8> {
        self.bytes.get(self.locate(offset)?).copied()
    }

    /// Writes one byte. Returns whether the offset is in the capability.
    pub(super) fn write(&mut self, offset: u16, value: u8) -> bool {
        let Some(at) = self.locate(offset) else {
            return false;
        };
        let writable = self.writable[at];
        self.bytes[at] = (self.bytes[at] & !writable) | (value & writable);
        true
    }

    fn word(&self, at: u16) -> u16 {
        let at = usize::from(at);
        u16::from_le_bytes([self.bytes[at], self.bytes[at + 1]])
    }

    fn dword(&self, at: u16) -> u32 {
        u32::from(self.word(at)) | u32::from(self.word(at + 2)) << 16
    }

    /// Message of each enabled vector, `None` for a masked one; `None` if MSI is off.
    pub(super) fn messages(&self) -> Option<Vec<Option<MsiMessage>>> {
        let control = self.word(msi::CONTROL);
        if control & msi::CONTROL_ENABLE == 0 {
            return None;
        }
        let is_64bit = control & msi::CONTROL_64BIT != 0;
        let data_at = msi::ADDRESS + if is_64bit { 8 } else { 4 };
        let mut address = u64::from(self.dword(msi::ADDRESS));
        if is_64bit {
            address |= u64::from(self.dword(msi::ADDRESS + 4)) << 32;
        }
        let capable = (control >> msi::CONTROL_CAPABLE_SHIFT) & 0x7;
        let enabled = ((control & msi::CONTROL_VECTORS) >> msi::CONTROL_VECTORS_SHIFT)
            .min(capable)
            .min(5);
        let count = 1_u32 << enabled;
        let data = u32::from(self.word(data_at)) & !(count - 1);
        let masked = if control & msi::CONTROL_MASKING == 0 {
            0
        } else {
            self.dword(data_at + 4)
        };
        let message = |n| {
            let data = data | n;
            (masked & (1_u32 << n) == 0).then_some(MsiMessage { address, data })
        };
        Some((0..count).map(message).collect())
    }

    /// Restores the state after reset.
    pub(super) fn reset(&mut self) {
        for (byte, writable) in self.bytes.iter_mut().zip(self.writable) {
            *byte &= !writable;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(msi: &mut Msi, offset: u16, data: &[u8]) {
        for (at, byte) in (offset..).zip(data) {
            assert!(msi.write(at, *byte));
        }
    }

    #[test]
    fn one_64_bit_vector() {
        let mut msi = Msi::new(0x40, [5, 0], 0x0080);
        write(&mut msi, 0x44, &0xfee0_1004_u32.to_le_bytes());
        write(&mut msi, 0x48, &1_u32.to_le_bytes());
        write(&mut msi, 0x4c, &0x41_u16.to_le_bytes());
        assert_eq!(msi.messages(), None);
        write(&mut msi, 0x42, &[1]);
        let expected = MsiMessage {
            address: 0x1_fee0_1004,
            data: 0x41,
        };
        assert_eq!(msi.messages(), Some(vec![Some(expected)]));
        msi.reset();
        assert_eq!(msi.messages(), None);
        assert_eq!(msi.read(0x42), Some(0x80));
    }

    #[test]
    fn more_vectors_than_the_function_has_are_not_given() {
        let mut msi = Msi::new(0x40, [5, 0], 0x0002);
        write(&mut msi, 0x48, &0x47_u16.to_le_bytes());
        write(&mut msi, 0x42, &[0x71]);
        let data: Vec<_> = msi
            .messages()
            .unwrap()
            .iter()
            .map(|m| m.unwrap().data)
            .collect();
        assert_eq!(data, [0x46, 0x47]);
    }

    #[test]
    fn masked_vectors_have_no_message() {
        let mut msi = Msi::new(0x40, [5, 0], 0x0102);
        write(&mut msi, 0x4c, &[0b10, 0, 0, 0]);
        write(&mut msi, 0x42, &[0x11]);
        let on: Vec<_> = msi
            .messages()
            .unwrap()
            .iter()
            .map(Option::is_some)
            .collect();
        assert_eq!(on, [true, false]);
    }

    #[test]
    fn only_its_own_registers_are_written() {
        let mut msi = Msi::new(0x40, [5, 0x60], 0x0080);
        write(&mut msi, 0x40, &[0xff, 0xff, 0xfe, 0xff]);
        assert_eq!(msi.read(0x41), Some(0x60));
        assert_eq!(msi.read(0x43), Some(0));
        assert!(!msi.write(0x4e, 1) && !msi.write(0x3f, 1));
        assert_eq!(msi.read(0x4e), None);
    }
}
