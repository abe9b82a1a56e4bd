//! The base address registers that the guest reads and writes.

use iommu_group::{Address, AddressRange, Gpa};

const FIRST: u16 = 0x10;
const COUNT: usize = 6;
/// First byte after the BARs of a type 0 header.
pub(super) const END: u16 = 0x28;

const IO_SPACE: u32 = 1;
const WIDE: u32 = 0b100;
const PREFETCHABLE: u32 = 0b1000;
const FLAGS: u32 = 0xf;

/// A memory BAR (PCI r3.0 §6.2.5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BarInfo {
    /// 0–5: the register, the lower of two for a 64-bit BAR.
    pub index: u8,
    /// Size in bytes, a power of two of at least 16. Its address is a multiple of it.
    pub size_bytes: u64,
    /// Whether it may lie above 4 GiB.
    pub is_64bit: bool,
    /// Whether reads have no side effects.
    pub prefetchable: bool,
}

/// The six registers. I/O BARs are not offered to the guest: they read as not implemented.
#[derive(Debug)]
pub(super) struct Bars {
    registers: [u32; COUNT],
    /// Bits of each register that a write changes.
    writable: [u32; COUNT],
    infos: Vec<BarInfo>,
}

impl Bars {
    /// From the hardware's header and the sizes of its six regions in bytes. Addresses start at 0.
    ///
    /// Returns the index of a BAR whose size is none.
    pub(super) fn new(hardware: [u32; COUNT], sizes: [u64; COUNT]) -> Result<Self, u8> {
        let mut bars = Self {
            registers: [0; COUNT],
            writable: [0; COUNT],
            infos: Vec::new(),
        };
        let mut upper_half = false;
        for (index, (register, size_bytes)) in (0_u8..).zip(hardware.into_iter().zip(sizes)) {
            if std::mem::take(&mut upper_half) || size_bytes == 0 || register & IO_SPACE != 0 {
                continue;
            }
            let at = usize::from(index);
            let is_64bit = register & 0b110 == WIDE;
            let fits = is_64bit && at + 1 < COUNT || !is_64bit && size_bytes <= 1 << 31;
            if !size_bytes.is_power_of_two() || size_bytes < 16 || !fits {
                return Err(index);
            }
            let mask = !(size_bytes - 1);
            bars.registers[at] = register & FLAGS;
            bars.writable[at] = low(mask);
            if is_64bit {
                bars.writable[at + 1] = high(mask);
                upper_half = true;
            }
            bars.infos.push(BarInfo {
                index,
                size_bytes,
                is_64bit,
                prefetchable: register & PREFETCHABLE != 0,
            });
        }
        Ok(bars)
    }

    pub(super) fn infos(&self) -> &[BarInfo] {
        &self.infos
    }

    /// Where a BAR is now.
    pub(super) fn range(&self, info: &BarInfo) -> Option<AddressRange<Gpa>> {
        let at = usize::from(info.index);
        let mut address = u64::from(self.registers[at] & !FLAGS);
        if info.is_64bit {
            address |= u64::from(self.registers[at + 1]) << 32;
        }
        AddressRange::new(Gpa::new(address), info.size_bytes)
    }

    /// Moves a BAR. Bits below its size are dropped, as hardware does.
    pub(super) fn set(&mut self, info: &BarInfo, address: Gpa) {
        let at = usize::from(info.index);
        self.store(at, low(address.value()));
        if info.is_64bit {
            self.store(at + 1, high(address.value()));
        }
    }

    /// Back to address 0, as after reset.
    pub(super) fn reset(&mut self) {
        for (register, writable) in self.registers.iter_mut().zip(self.writable) {
            *register &= !writable;
        }
    }

    fn store(&mut self, at: usize, value: u32) {
        let writable = self.writable[at];
        self.registers[at] = (self.registers[at] & !writable) | (value & writable);
    }

    /// The byte of the register file at a configuration offset in `0x10..0x28`.
    pub(super) fn read(&self, offset: u16) -> Option<u8> {
        let (at, byte) = locate(offset)?;
        self.registers[at].to_le_bytes().get(byte).copied()
    }

    /// Writes one byte at a configuration offset in `0x10..0x28`.
    pub(super) fn write(&mut self, offset: u16, value: u8) {
        let Some((at, byte)) = locate(offset) else {
            return;
        };
        let mut bytes = self.registers[at].to_le_bytes();
        if let Some(slot) = bytes.get_mut(byte) {
            *slot = value;
        }
        self.store(at, u32::from_le_bytes(bytes));
    }
}

fn locate(offset: u16) -> Option<(usize, usize)> {
    let byte = usize::from(offset.checked_sub(FIRST)?);
    (byte < COUNT * 4).then_some((byte / 4, byte % 4))
}

#[expect(clippy::cast_possible_truncation, reason = "the lower half is meant")]
fn low(value: u64) -> u32 {
    value as u32
}

fn high(value: u64) -> u32 {
    (value >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write32(bars: &mut Bars, offset: u16, value: u32) {
        for (at, byte) in (offset..).zip(value.to_le_bytes()) {
            bars.write(at, byte);
        }
    }

    fn read32(bars: &Bars, offset: u16) -> u32 {
        u32::from_le_bytes([0, 1, 2, 3].map(|n| bars.read(offset + n).unwrap()))
    }

    fn edu() -> Bars {
        Bars::new([0xfe80_0000, 0, 0, 0, 0, 0], [1 << 20, 0, 0, 0, 0, 0]).unwrap()
    }

    fn gpu() -> Bars {
        let hardware = [0xfa00_0000, 0xe000_000c, 0x38, 0xf000_000c, 0x38, 0xe001];
        let sizes = [16 << 20, 64 << 30, 0, 32 << 20, 0, 128];
        Bars::new(hardware, sizes).unwrap()
    }

    #[test]
    fn sizing_answers_with_the_size() {
        let mut bars = edu();
        write32(&mut bars, 0x10, u32::MAX);
        assert_eq!(read32(&bars, 0x10), 0xfff0_0000);
    }

    #[test]
    fn sizing_a_64_bit_bar_takes_both_halves() {
        let mut bars = gpu();
        write32(&mut bars, 0x14, u32::MAX);
        write32(&mut bars, 0x18, u32::MAX);
        assert_eq!(read32(&bars, 0x14), 0x0000_000c);
        assert_eq!(read32(&bars, 0x18), 0xffff_fff0);
    }

    #[test]
    fn io_bars_and_absent_bars_read_zero() {
        let mut bars = gpu();
        write32(&mut bars, 0x24, u32::MAX);
        assert_eq!(read32(&bars, 0x24), 0);
        let mut bars = edu();
        write32(&mut bars, 0x14, u32::MAX);
        assert_eq!(read32(&bars, 0x14), 0);
    }

    #[test]
    fn addresses_are_where_they_were_put() {
        let mut bars = gpu();
        let info = bars.infos()[1];
        assert!(info.is_64bit && info.prefetchable);
        bars.set(&info, Gpa::new(0x40_0000_0000));
        let expected = AddressRange::new(Gpa::new(0x40_0000_0000), 64 << 30);
        assert_eq!(bars.range(&info), expected);
    }

    #[test]
    fn sizes_that_are_none_are_named() {
        assert_eq!(Bars::new([0; 6], [0, 0, 24, 0, 0, 0]).unwrap_err(), 2);
        assert_eq!(Bars::new([0; 6], [8, 0, 0, 0, 0, 0]).unwrap_err(), 0);
        let wide_and_last = [0, 0, 0, 0, 0, 0xc];
        let sizes = [0, 0, 0, 0, 0, 4096];
        assert_eq!(Bars::new(wide_and_last, sizes).unwrap_err(), 5);
    }

    #[test]
    fn accesses_outside_the_registers_do_nothing() {
        let mut bars = edu();
        bars.write(0x0f, 0xff);
        bars.write(0x28, 0xff);
        assert_eq!(bars.read(0x28), None);
        assert_eq!(read32(&bars, 0x10), 0);
    }
}
