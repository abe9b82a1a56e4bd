//! Base address registers and bridge windows: the addresses that a function responds to or forwards.

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use super::ConfigSpace;
use super::spec::{bar, bridge};

/// Address space of a BAR.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Space {
    /// I/O ports.
    Io,
    /// Memory below 4 GiB (32-bit BAR).
    Memory32,
    /// Memory at any address (64-bit BAR).
    Memory64,
}

/// The content of a base address register. Its size can be read only by writing to the register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BarRegister {
    /// Address space.
    pub space: Space,
    /// Whether the memory is prefetchable, that is, reads have no side effects.
    pub prefetchable: bool,
    /// Bus address. 0 usually means that no address is assigned.
    pub address: u64,
}

/// Reads `N` registers through `read(index)`. A register of zero is either a 32-bit BAR without an address or not
/// implemented; it is decoded as not implemented.
pub(super) fn decode<const N: usize>(
    read: impl Fn(u16) -> Option<u32>,
) -> [Option<BarRegister>; N] {
    let mut bars = [None; N];
    let mut upper_half = false;
    for (slot, index) in bars.iter_mut().zip(0_u16..) {
        if upper_half {
            upper_half = false;
            continue;
        }
        let Some(value) = read(index).filter(|value| *value != 0 && *value != u32::MAX) else {
            continue;
        };
        if value & bar::IO != 0 {
            *slot = Some(BarRegister {
                space: Space::Io,
                prefetchable: false,
                address: u64::from(value & bar::IO_ADDRESS),
            });
            continue;
        }
        let low = u64::from(value & bar::MEMORY_ADDRESS);
        let wide = value & bar::MEMORY_TYPE == bar::MEMORY_TYPE_64;
        let high = if wide {
            read(index.saturating_add(1))
        } else {
            None
        };
        upper_half = wide;
        *slot = Some(BarRegister {
            space: if wide {
                Space::Memory64
            } else {
                Space::Memory32
            },
            prefetchable: value & bar::PREFETCHABLE != 0,
            address: low | (u64::from(high.unwrap_or(0)) << 32),
        });
    }
    bars
}

/// The bus addresses that a bridge forwards from its primary to its secondary side (PCIe r6.0 §7.5.1.3).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BridgeWindows {
    /// I/O ports.
    pub io: Option<RangeInclusive<u64>>,
    /// Non-prefetchable memory, below 4 GiB.
    pub memory: Option<RangeInclusive<u64>>,
    /// Prefetchable memory.
    pub prefetchable: Option<RangeInclusive<u64>>,
}

impl BridgeWindows {
    pub(super) fn decode(space: &ConfigSpace) -> Option<Self> {
        // Bits 3:0 of a base encode the address width. The low bits of a limit are ones.
        let io_low = space.u8(bridge::IO_BASE)?;
        let io_upper = |offset| {
            (io_low & 0xf == 1)
                .then(|| space.u16(offset))
                .flatten()
                .unwrap_or(0)
        };
        let io = |low: u8, upper: u16| (u64::from(upper) << 16) | (u64::from(low & 0xf0) << 8);
        let io_base = io(io_low, io_upper(bridge::IO_BASE_UPPER));
        let io_limit = io(
            space.u8(bridge::IO_LIMIT)?,
            io_upper(bridge::IO_LIMIT_UPPER),
        ) | 0xfff;

        let memory = |word: u16| u64::from(word & 0xfff0) << 16;
        let memory_base = memory(space.u16(bridge::MEMORY_BASE)?);
        let memory_limit = memory(space.u16(bridge::MEMORY_LIMIT)?) | 0xf_ffff;

        let prefetch_low = space.u16(bridge::PREFETCH_BASE)?;
        let prefetch_upper = |offset| {
            let upper = (prefetch_low & 0xf == 1)
                .then(|| space.u32(offset))
                .flatten();
            u64::from(upper.unwrap_or(0)) << 32
        };
        let prefetch_base = memory(prefetch_low) | prefetch_upper(bridge::PREFETCH_BASE_UPPER);
        let prefetch_limit = memory(space.u16(bridge::PREFETCH_LIMIT)?)
            | prefetch_upper(bridge::PREFETCH_LIMIT_UPPER)
            | 0xf_ffff;

        // Registers that were never written read as zero, which would decode as the lowest window. No real machine
        // forwards that window, so an all-zero pair is decoded as not implemented.
        let window = |base: u64, limit: u64, implemented: bool| {
            (implemented && base <= limit).then_some(base..=limit)
        };
        Some(Self {
            io: window(io_base, io_limit, space.u16(bridge::IO_BASE)? != 0),
            memory: window(
                memory_base,
                memory_limit,
                space.u32(bridge::MEMORY_BASE)? != 0,
            ),
            prefetchable: window(
                prefetch_base,
                prefetch_limit,
                space.u32(bridge::PREFETCH_BASE)? != 0,
            ),
        })
    }

    /// The memory windows.
    pub fn memory_windows(&self) -> impl Iterator<Item = &RangeInclusive<u64>> {
        self.memory.iter().chain(&self.prefetchable)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bars(values: [u32; 6]) -> [Option<BarRegister>; 6] {
        decode(|index| values.get(usize::from(index)).copied())
    }

    #[test]
    fn kinds_of_bars() {
        let found = bars([
            0xfebf_0000,
            0x0000_c001,
            0x0000_000c,
            0x0000_0040,
            0,
            u32::MAX,
        ]);
        assert_eq!(
            found,
            [
                Some(BarRegister {
                    space: Space::Memory32,
                    prefetchable: false,
                    address: 0xfebf_0000
                }),
                Some(BarRegister {
                    space: Space::Io,
                    prefetchable: false,
                    address: 0xc000
                }),
                Some(BarRegister {
                    space: Space::Memory64,
                    prefetchable: true,
                    address: 0x40_0000_0000
                }),
                None,
                None,
                None,
            ]
        );
    }

    #[test]
    fn a_64_bit_bar_in_the_last_register_has_no_upper_half() {
        let found = bars([0, 0, 0, 0, 0, 0xe000_0004]);
        assert_eq!(found[5].unwrap().address, 0xe000_0000);
    }

    fn windows(bytes: &[(usize, u8)]) -> BridgeWindows {
        let mut all = [0; 64];
        for (offset, byte) in bytes {
            all[*offset] = *byte;
        }
        BridgeWindows::decode(&ConfigSpace::new(&all)).unwrap()
    }

    #[test]
    fn windows_of_a_bridge() {
        let found = windows(&[
            (0x1c, 0x11),
            (0x1d, 0x21),
            (0x20, 0x00),
            (0x21, 0xfe),
            (0x22, 0x10),
            (0x23, 0xfe),
            (0x24, 0x01),
            (0x26, 0xf1),
            (0x27, 0xff),
            (0x28, 0x08),
            (0x2c, 0x08),
        ]);
        assert_eq!(found.io, Some(0x1000..=0x2fff));
        assert_eq!(found.memory, Some(0xfe00_0000..=0xfe1f_ffff));
        assert_eq!(found.prefetchable, Some(0x8_0000_0000..=0x8_ffff_ffff));
        assert_eq!(found.memory_windows().count(), 2);
    }

    #[test]
    fn closed_and_absent_windows_are_none() {
        assert_eq!(windows(&[]), BridgeWindows::default());
        let closed = windows(&[
            (0x1c, 0xf0),
            (0x20, 0xf0),
            (0x21, 0xff),
            (0x24, 0xf1),
            (0x25, 0xff),
            (0x26, 0x01),
        ]);
        assert_eq!(closed, BridgeWindows::default());
    }

    #[test]
    fn a_32_bit_prefetchable_window_ignores_the_upper_registers() {
        let found = windows(&[(0x25, 0xe0), (0x27, 0xe0), (0x28, 0xff), (0x2c, 0xff)]);
        assert_eq!(found.prefetchable, Some(0xe000_0000..=0xe00f_ffff));
    }
}
