//! Decoders of the two configuration mechanisms: ECAM (PCIe r6.0 §7.2.2) and the ports 0xcf8/0xcfc (PCI r3.0
//! §3.2.2.3.2).

use iommu_group::Sbdf;
use iommu_group::spec::EXTENDED_BYTES;

/// Bytes of configuration space of one function.
const FUNCTION_BYTES: u64 = EXTENDED_BYTES as u64;

/// Function and register at an offset into ECAM; `None` if the access crosses into the next function.
pub(crate) fn decode_ecam(offset: u64, len_bytes: usize) -> Option<(Sbdf, u16)> {
    let register = offset % FUNCTION_BYTES;
    let len_bytes = u64::try_from(len_bytes).ok()?;
    if register.checked_add(len_bytes)? > FUNCTION_BYTES {
        return None;
    }
    let bus = u8::try_from(offset >> 20).ok()?;
    let device = u8::try_from(offset >> 15 & 0x1f).ok()?;
    let function = u8::try_from(offset >> 12 & 0x7).ok()?;
    let sbdf = Sbdf::new(0, bus, device, function).ok()?;
    Some((sbdf, u16::try_from(register).ok()?))
}

/// CONFIG_ADDRESS, the register at port 0xcf8.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct ConfigAddressPort {
    value: u32,
}

impl ConfigAddressPort {
    /// Handles a write to the port. Only double-word accesses are to the register.
    pub(crate) fn write(&mut self, data: &[u8]) {
        if let Ok(bytes) = data.try_into() {
            self.value = u32::from_le_bytes(bytes);
        }
    }

    /// Reads the register; all ones unless the access is a double word.
    pub(crate) fn read(self, data: &mut [u8]) {
        match <&mut [u8; 4]>::try_from(&mut *data) {
            Ok(bytes) => *bytes = self.value.to_le_bytes(),
            Err(_) => data.fill(0xff),
        }
    }

    /// Function and register of an access at byte `byte` (0 to 3) of CONFIG_DATA; `None` if the address is not
    /// enabled or the access crosses the double word.
    pub(crate) fn decode(self, byte: u16, len_bytes: usize) -> Option<(Sbdf, u16)> {
        let enabled = self.value >> 31 == 1;
        let end = usize::from(byte).checked_add(len_bytes)?;
        if !enabled || end > 4 {
            return None;
        }
        let [register, low, bus, _] = self.value.to_le_bytes();
        let sbdf = Sbdf::from_devfn(0, bus, low);
        Some((sbdf, u16::from(register & 0xfc) + byte))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sbdf(bus: u8, device: u8, function: u8) -> Sbdf {
        Sbdf::new(0, bus, device, function).unwrap()
    }

    #[test]
    fn ecam_offset_holds_all_numbers() {
        let offset = 0x12 << 20 | 0x1f << 15 | 7 << 12 | 0xffc;
        assert_eq!(decode_ecam(offset, 4), Some((sbdf(0x12, 0x1f, 7), 0xffc)));
        assert_eq!(decode_ecam(0, 1), Some((sbdf(0, 0, 0), 0)));
    }

    #[test]
    fn ecam_access_into_the_next_function_is_none() {
        assert_eq!(decode_ecam(0xffe, 4), None);
        assert_eq!(decode_ecam(0x100 << 20, 4), None, "there are 256 buses");
        assert_eq!(decode_ecam(0, usize::MAX), None);
    }

    #[test]
    fn config_address_holds_all_numbers() {
        let mut port = ConfigAddressPort::default();
        port.write(&0x8012_fb3cu32.to_le_bytes());
        assert_eq!(port.decode(1, 2), Some((sbdf(0x12, 0x1f, 3), 0x3d)));

        let mut back = [0; 4];
        port.read(&mut back);
        assert_eq!(u32::from_le_bytes(back), 0x8012_fb3c);
    }

    #[test]
    fn config_address_without_enable_bit_is_none() {
        let mut port = ConfigAddressPort::default();
        port.write(&0x0012_fb3cu32.to_le_bytes());
        assert_eq!(port.decode(0, 4), None);
    }

    #[test]
    fn config_data_access_beyond_the_double_word_is_none() {
        let mut port = ConfigAddressPort::default();
        port.write(&0x8000_0000u32.to_le_bytes());
        assert_eq!(port.decode(2, 4), None);
        assert_eq!(port.decode(2, 2), Some((sbdf(0, 0, 0), 2)));
    }

    #[test]
    fn config_address_takes_double_words_only() {
        let mut port = ConfigAddressPort::default();
        port.write(&0x8000_0000u32.to_le_bytes());
        port.write(&[0x12]);
        let mut byte = [0; 1];
        port.read(&mut byte);
        assert_eq!(byte, [0xff]);
        assert_eq!(port.decode(0, 4), Some((sbdf(0, 0, 0), 0)));
    }
}
