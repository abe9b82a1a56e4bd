//! Functions to assign to a guest.

use p2p_vfio::fuzzing::FakeFunction;

use crate::bytes::Bytes;

/// Sizes of BARs in bytes: no BAR, less than a page, a page, some pages, and a unit of bridge windows.
const SIZES: [u64; 6] = [0, 256, 4096, 0x4000, 1 << 20, 1 << 21];
/// Maximum number of arbitrary bytes in configuration space.
const MOST_PATCHES: usize = 24;

/// A function with MSI at 0x40, MSI-X at 0x60 with its table in BAR 1, power management at 0x70 and PCI Express with
/// function level reset at 0x80. Some of these bytes are replaced by arbitrary ones.
pub(super) fn function(bytes: &mut Bytes<'_>) -> FakeFunction {
    let shape = bytes.next();
    let mut config = vec![0; if shape & 1 == 0 { 256 } else { 4096 }];
    let mut put = |at: usize, data: &[u8]| {
        if let Some(to) = config.get_mut(at..at + data.len()) {
            to.copy_from_slice(data);
        }
    };
    put(0x00, &[0x34, 0x12, 0xe8, 0x11, 0x07, 0x00, 0x10, 0x00]);
    if shape & 2 != 0 {
        // BAR 0 is a 64-bit BAR and takes two registers; so is BAR 2.
        put(0x10, &[0x0c, 0, 0, 0, 0, 0, 0, 0, 0x04]);
    }
    put(0x34, &[0x40]);
    put(0x3d, &[u8::from(shape & 4 == 0)]);
    put(0x40, &[0x05, 0x60, 0x84 | (shape & 8) << 4, shape >> 4 & 1]);
    put(0x60, &[0x11, 0x70, 0x02, 0x00]);
    put(0x64, &0x1001_u32.to_le_bytes());
    put(0x68, &0x2001_u32.to_le_bytes());
    put(0x70, &[0x01, 0x80, 0x03, 0x00, 0x00]);
    put(0x80, &[0x10, 0x90, 0x02, 0x00, 0x00, 0x00, 0x00, 0x10]);
    put(0x90, &[0x13, 0x00, 0x06, 0x03]);
    if shape & 1 != 0 {
        // ACS, ATS and a resizable BAR, which are hidden from the guest.
        put(0x100, &[0x0d, 0, 1, 0x14, 0x7f, 0x08]);
        put(0x140, &[0x0f, 0, 1, 0x15]);
        put(0x150, &[0x15, 0, 1, 0]);
        put(0x158, &[0x20]);
    }
    let mut bar_sizes = [1 << 20, 0x4000, 0, 0, 0, 0];
    if shape & 0x20 != 0 {
        bar_sizes = bar_sizes.map(|_| bytes.pick(&SIZES));
        for _ in 0..bytes.below(MOST_PATCHES) {
            let at = u16::from_le_bytes(bytes.array());
            let value = bytes.next();
            let at = usize::from(at) % config.len();
            if let Some(byte) = config.get_mut(at) {
                *byte = value;
            }
        }
    }
    FakeFunction {
        config,
        bar_sizes,
        mappable: shape & 0x40 == 0,
        vectors: [4, 3],
        dynamic: shape & 0x80 == 0,
    }
}
