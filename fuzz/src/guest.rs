//! Actions of a guest: accesses to configuration space and memory, and to the registers of its slots.

mod bus;
mod check;
mod device;
mod function;
mod port;
mod slots;

pub(crate) use bus::bus;
pub(crate) use device::device;
pub(crate) use port::port;
pub(crate) use slots::slots;

use iommu_group::{Address, AddressRange, Gpa};

use crate::bytes::Bytes;

/// Start of the MMIO window of the host bridge.
const MMIO: u64 = 0xc000_0000;
const MMIO_BYTES: u64 = 1 << 29;

fn range(start: u64, len_bytes: u64) -> AddressRange<Gpa> {
    AddressRange::new(Gpa::new(start), len_bytes).expect("a range")
}

/// Data of a guest's access: 1 to 8 bytes.
fn data<'a>(bytes: &mut Bytes<'a>) -> Vec<u8> {
    let length = bytes.below(8) + 1;
    let mut data = bytes.take(length).to_vec();
    data.resize(length, 0);
    data
}

/// Start of a range: near the windows of the host bridge, or anywhere.
fn address(bytes: &mut Bytes<'_>) -> u64 {
    match bytes.below(4) {
        0 => u64::from_le_bytes(bytes.array()),
        _ => MMIO + (u64::from(u16::from_le_bytes(bytes.array())) << 13),
    }
}
