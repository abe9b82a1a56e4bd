//! The base address registers as the guest reads and writes them.

use iommu_group::spec::{bar, header};
use iommu_group::{Address, AddressRange, Bar, Gpa, Space};

const COUNT: usize = 6;
/// First byte after the BARs of a type 0 header.
pub(super) const END: u16 = header::BAR0 + 24;

/// The six registers. I/O BARs read as not implemented for the guest.
#[derive(Debug)]
pub(super) struct Bars {
    registers: [u32; COUNT],
    /// Bits of each register that a write changes.
    writable: [u32; COUNT],
    infos: Vec<Bar>,
}

/// The memory BARs of a function, from the registers of its header and the sizes of its six regions in bytes.
pub(super) fn decode(registers: [u32; COUNT], sizes: [u64; COUNT]) -> Vec<Bar> {
    let mut bars = Vec::new();
    let mut upper_half = false;
    for (index, (register, size_bytes)) in (0_u8..).zip(registers.into_iter().zip(sizes)) {
        if std::mem::take(&mut upper_half) || size_bytes == 0 || register & bar::IO != 0 {
            continue;
        }
        upper_half = register & bar::MEMORY_TYPE == bar::MEMORY_TYPE_64;
        bars.push(Bar {
            index,
            space: match upper_half {
                true => Space::Memory64,
                false => Space::Memory32,
            },
            prefetchable: register & bar::PREFETCHABLE != 0,
            bus_address: None,
            size_bytes,
        });
    }
    bars
}

impl Bars {
    /// The registers of an endpoint with these memory BARs. Addresses start at 0.
    pub(super) fn new(infos: &[Bar]) -> Self {
        let mut bars = Self {
            registers: [0; COUNT],
            writable: [0; COUNT],
            infos: infos.to_vec(),
        };
        for info in infos {
            let at = usize::from(info.index);
            let mask = !info.size_bytes.saturating_sub(1);
            if let Some(register) = bars.registers.get_mut(at) {
                *register = flags(info);
            }
            let halves = [low(mask), high(mask)].into_iter();
            let halves = halves.take(if info.is_64bit() { 2 } else { 1 });
            for (writable, half) in bars.writable.iter_mut().skip(at).zip(halves) {
                *writable = half;
            }
        }
        bars
    }

    pub(super) fn infos(&self) -> &[Bar] {
        &self.infos
    }

    /// The current range of a BAR.
    pub(super) fn range(&self, info: &Bar) -> Option<AddressRange<Gpa>> {
        let at = usize::from(info.index);
        let mut address = u64::from(self.registers[at] & bar::MEMORY_ADDRESS);
        if info.is_64bit() {
            address |= u64::from(self.registers[at + 1]) << 32;
        }
        AddressRange::new(Gpa::new(address), info.size_bytes)
    }

    /// Sets the address of a BAR. Bits below its size are dropped, as in hardware.
    pub(super) fn set(&mut self, info: &Bar, address: Gpa) {
        let at = usize::from(info.index);
        self.store(at, low(address.value()));
        if info.is_64bit() {
            self.store(at + 1, high(address.value()));
        }
    }

    /// Sets all addresses to 0, as after reset.
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

/// The low bits of a register, which are not part of the address.
fn flags(info: &Bar) -> u32 {
    let kind = if info.is_64bit() {
        bar::MEMORY_TYPE_64
    } else {
        0
    };
    let prefetchable = if info.prefetchable {
        bar::PREFETCHABLE
    } else {
        0
    };
    kind | prefetchable
}

fn locate(offset: u16) -> Option<(usize, usize)> {
    let byte = usize::from(offset.checked_sub(header::BAR0)?);
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
        let registers = [0xfe80_0000, 0, 0, 0, 0, 0];
        Bars::new(&decode(registers, [1 << 20, 0, 0, 0, 0, 0]))
    }

    fn gpu() -> Bars {
        let registers = [0xfa00_0000, 0xe000_000c, 0x38, 0xf000_000c, 0x38, 0xe001];
        let sizes = [16 << 20, 64 << 30, 0, 32 << 20, 0, 128];
        Bars::new(&decode(registers, sizes))
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
        assert!(info.is_64bit() && info.prefetchable);
        bars.set(&info, Gpa::new(0x40_0000_0000));
        let expected = AddressRange::new(Gpa::new(0x40_0000_0000), 64 << 30);
        assert_eq!(bars.range(&info), expected);
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
