//! The bytes of a configuration space.

use super::Placed;
use super::function::{BarKind, Function, Kind};

const POWER: usize = 0x40;
const MSI_X: usize = 0x50;
const EXPRESS: usize = 0x60;
const ERRORS: usize = 0x100;
const ACS: usize = 0x150;
const ARI: usize = 0x160;
const ATS: usize = 0x170;
const SRIOV: usize = 0x180;

struct Bytes(Vec<u8>);

impl Bytes {
    fn u8(&mut self, at: usize, value: u8) {
        self.0[at] = value;
    }

    fn u16(&mut self, at: usize, value: u16) {
        self.0[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }

    fn u32(&mut self, at: usize, value: u32) {
        self.0[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }

    fn bars(&mut self, at: usize, bars: &[(u16, BarKind, u64)]) {
        for (index, kind, address) in bars {
            let at = at + usize::from(*index) * 4;
            let flags = match kind {
                BarKind::Memory32 => 0x0,
                BarKind::Memory64 => 0x4,
                BarKind::Prefetchable64 => 0xc,
            };
            self.u32(at, u32::try_from(address & 0xffff_fff0).unwrap() | flags);
            if *kind != BarKind::Memory32 {
                self.u32(at + 4, u32::try_from(address >> 32).unwrap());
            }
        }
    }
}

/// What a privileged reader sees of a function.
pub(crate) fn bytes(placed: &Placed) -> Vec<u8> {
    let function = &placed.function;
    let express = function.kind.number();
    let mut b = Bytes(vec![0; if express.is_some() { 4096 } else { 256 }]);
    let (vendor, device) = if placed.is_virtual {
        (0xffff, 0xffff)
    } else {
        function.ids
    };
    b.u16(0x00, vendor);
    b.u16(0x02, device);
    b.u16(
        0x04,
        if function.driver.is_some() {
            0x0006
        } else {
            0x0002
        },
    );
    b.u32(0x08, function.class << 8);
    header(&mut b, placed);
    if function.kind == Kind::Conventional && function.class >> 16 == 0x06 {
        return b.0;
    }
    b.u16(0x06, 0x0010);
    b.u8(0x34, u8::try_from(POWER).unwrap());
    b.u16(
        POWER,
        if express.is_some() {
            (MSI_X as u16) << 8 | 0x01
        } else {
            0x01
        },
    );
    b.u16(POWER + 2, 0x0003);
    // No soft reset.
    b.u16(POWER + 4, 0x0008);
    if let Some(kind) = express {
        b.u16(MSI_X, (EXPRESS as u16) << 8 | 0x11);
        b.u16(MSI_X + 2, 0x001f);
        capability(&mut b, function, kind, placed.link_up);
        extended(&mut b, placed);
    }
    b.0
}

fn header(b: &mut Bytes, placed: &Placed) {
    let multifunction = if placed.multifunction { 0x80 } else { 0 };
    let bars: Vec<_> = placed
        .bars
        .iter()
        .filter(|_| !placed.is_virtual)
        .map(|bar| (bar.index, bar.kind, bar.address))
        .collect();
    b.bars(0x10, &bars);
    let Some(bus) = placed.secondary else {
        b.u8(0x0e, multifunction);
        b.u16(0x2c, placed.function.subsystem.0);
        b.u16(0x2e, placed.function.subsystem.1);
        return;
    };
    b.u8(0x0e, multifunction | 1);
    b.u8(0x18, placed.bus);
    b.u8(0x19, bus);
    b.u8(0x1a, placed.subordinate);
    // No I/O window: base above limit.
    b.u8(0x1c, 0xf0);
    window(b, 0x20, placed.window, 0);
    window(b, 0x24, placed.prefetch_window, 1);
    if let Some((start, end)) = placed.prefetch_window {
        b.u32(0x28, u32::try_from(start >> 32).unwrap());
        b.u32(0x2c, u32::try_from((end - 1) >> 32).unwrap());
    }
}

fn window(b: &mut Bytes, at: usize, window: Option<(u64, u64)>, width: u16) {
    let word = |address: u64| u16::try_from((address >> 16) & 0xfff0).unwrap() | width;
    match window {
        Some((start, end)) => {
            b.u16(at, word(start));
            b.u16(at + 2, word(end - 1));
        }
        None => {
            b.u16(at, 0xfff0 | width);
            b.u16(at + 2, width);
        }
    }
}

fn capability(b: &mut Bytes, function: &Function, kind: u16, link_up: bool) {
    b.u16(EXPRESS, 0x0010);
    let slot = u16::from(function.slot.is_some()) << 8;
    b.u16(EXPRESS + 0x02, 2 | kind << 4 | slot);
    b.u32(EXPRESS + 0x04, 0x8000 | u32::from(function.flr) << 28);
    let (generation, lanes, most_generation, most_lanes) = function.link;
    let port = u32::from(function.device);
    b.u32(
        EXPRESS + 0x0c,
        u32::from(most_generation) | u32::from(most_lanes) << 4 | 1 << 20 | port << 24,
    );
    if link_up {
        let active = u16::from(function.kind.is_downstream_port()) << 13;
        b.u16(EXPRESS + 0x12, generation | lanes << 4 | active);
    }
    if let Some(number) = function.slot {
        b.u32(EXPRESS + 0x14, number << 19 | 1 << 6);
    }
    if function.ari && function.kind.is_downstream_port() {
        b.u32(EXPRESS + 0x24, 1 << 5);
        b.u16(EXPRESS + 0x28, 1 << 5);
    }
}

fn extended(b: &mut Bytes, placed: &Placed) {
    let function = &placed.function;
    let mut list = vec![(ERRORS, 0x0001_u32, 2_u32)];
    if function.acs.is_some() {
        list.push((ACS, 0x000d, 1));
    }
    if function.ari && !function.kind.is_bridge() {
        list.push((ARI, 0x000e, 1));
    }
    if function.ats.is_some() {
        list.push((ATS, 0x000f, 1));
    }
    if function.virtual_functions.is_some() {
        list.push((SRIOV, 0x0010, 1));
    }
    for (index, (at, id, version)) in list.iter().enumerate() {
        let next = list.get(index + 1).map_or(0, |(next, ..)| *next);
        b.u32(*at, id | version << 16 | u32::try_from(next << 20).unwrap());
    }
    if let Some((implemented, control)) = function.acs {
        b.u16(ACS + 4, implemented);
        b.u16(ACS + 6, control);
    }
    if let Some(enabled) = function.ats {
        b.u16(ATS + 4, 0x0020);
        b.u16(ATS + 6, u16::from(enabled) << 15);
    }
    if let Some(virtual_functions) = function.virtual_functions {
        b.u16(SRIOV + 0x08, 0x0009 | u16::from(function.ari) << 4);
        for at in [0x0c, 0x0e, 0x10] {
            b.u16(SRIOV + at, virtual_functions.count);
        }
        b.u16(SRIOV + 0x14, placed.first_virtual);
        b.u16(SRIOV + 0x16, 1);
        b.u16(SRIOV + 0x1a, virtual_functions.device);
        if let Some(address) = placed.virtual_bars {
            b.bars(SRIOV + 0x24, &[(0, BarKind::Prefetchable64, address)]);
        }
    }
}
