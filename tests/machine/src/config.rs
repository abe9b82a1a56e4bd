//! Configuration spaces.

use serde_json::{Map, Value, json};

use super::Placed;
use super::function::{BarKind, Kind};

// Offsets of the capabilities. The list has those that the function has, in this order.
const POWER: usize = 0x40;
const MSI_X: usize = 0x50;
const EXPRESS: usize = 0x60;
const ADVANCED_FEATURES: usize = 0xa0;
const ERRORS: usize = 0x100;
// With room for an egress vector of 32 ports if the function also has one of the next three, else for 256.
const ACS: usize = 0x150;
const ARI: usize = 0x160;
const ATS: usize = 0x170;
const SRIOV: usize = 0x180;
const CXL_PORT: usize = 0x200;

/// A configuration space under construction.
#[derive(Debug)]
pub struct Space {
    /// The bytes so far.
    pub bytes: Vec<u8>,
    /// Offset of the pointer to the next capability.
    pointer: usize,
    /// Offset of the last extended capability, or 0.
    last_extended: usize,
}

impl Space {
    /// A space of zeros.
    pub fn new(len: usize) -> Self {
        Self {
            bytes: vec![0; len],
            pointer: 0x34,
            last_extended: 0,
        }
    }

    /// Writes bytes.
    pub fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn u16(&mut self, at: usize, value: u16) {
        self.put(at, &value.to_le_bytes());
    }

    fn u32(&mut self, at: usize, value: u32) {
        self.put(at, &value.to_le_bytes());
    }

    /// Appends a capability at an offset to the list.
    pub fn capability(&mut self, at: usize, id: u8) {
        self.bytes[self.pointer] = u8::try_from(at).unwrap();
        self.put(at, &[id, 0]);
        self.pointer = at + 1;
    }

    /// Appends an extended capability at an offset to the list.
    pub fn extended(&mut self, at: usize, id: u16, version: u8) {
        if self.last_extended != 0 {
            let pointer = u16::try_from(at << 4).unwrap();
            let version = u16::from(self.bytes[self.last_extended + 2]);
            self.u16(self.last_extended + 2, pointer | version);
        }
        self.u16(at, id);
        self.u16(at + 2, version.into());
        self.last_extended = at;
    }

    fn bar(&mut self, at: usize, index: u16, kind: BarKind, address: u64) {
        let at = at + usize::from(index) * 4;
        let [a, b, c, d, high @ ..] = address.to_le_bytes();
        self.put(at, &[a & 0xf0 | kind.register(), b, c, d]);
        if kind != BarKind::Memory32 {
            self.put(at + 4, &high);
        }
    }

    fn window(&mut self, at: usize, window: Option<(u64, u64)>, width: u16) {
        let word = |address: u64| u16::try_from(address >> 16 & 0xfff0).unwrap() | width;
        // A base above the limit closes the window.
        let (base, limit) = window.map_or((0xfff0 | width, width), |(start, end)| {
            (word(start), word(end - 1))
        });
        self.u16(at, base);
        self.u16(at + 2, limit);
    }
}

/// A configuration space as a dump has it: lines of 16 bytes that are not all zero.
pub fn text(bytes: &[u8], visible: usize) -> Value {
    let mut text = Map::new();
    text.insert("visible".into(), json!(visible));
    let last = bytes.len().checked_sub(1);
    let read = last.map_or(String::new(), |last| format!("000-{last:03x}"));
    text.insert("read".into(), json!(read));
    for (row, line) in bytes.chunks(16).enumerate() {
        if line.iter().any(|byte| *byte != 0) {
            let hex: String = line.iter().map(|byte| format!("{byte:02x}")).collect();
            text.insert(format!("{:03x}", row * 16), json!(hex));
        }
    }
    Value::Object(text)
}

/// All bytes of a function.
pub(super) fn bytes(placed: &Placed) -> Vec<u8> {
    let function = &placed.function;
    let mut space = Space::new(function.kind.space());
    header(&mut space, placed);
    if function.kind != Kind::Conventional || function.class >> 16 != 0x06 {
        space.u16(0x06, 0x0010);
        capabilities(&mut space, placed);
    }
    if function.kind.number().is_some() {
        extended(&mut space, placed);
    }
    if function.dead {
        space.bytes.fill(0xff);
    }
    space.bytes
}

fn header(space: &mut Space, placed: &Placed) {
    let function = &placed.function;
    let is_virtual = placed.physical.is_some();
    let (vendor, device) = if is_virtual {
        (0xffff, 0xffff)
    } else {
        function.ids
    };
    space.u16(0x00, vendor);
    space.u16(0x02, device);
    let bus_master = u16::from(function.driver.is_some()) << 2;
    space.u16(0x04, function.command.unwrap_or(0x0002 | bus_master));
    space.u32(0x08, function.class << 8);
    for bar in placed.bars.iter().filter(|_| !is_virtual) {
        space.bar(0x10, bar.index, bar.kind, bar.address);
    }
    let multifunction = u8::from(placed.multifunction) << 7;
    let Some((secondary, subordinate)) = placed.buses else {
        space.put(0x0e, &[multifunction]);
        space.u16(0x2c, function.subsystem.0);
        space.u16(0x2e, function.subsystem.1);
        return;
    };
    space.put(0x0e, &[multifunction | 1]);
    space.put(0x18, &[placed.sbdf.bus(), secondary, subordinate]);
    // No I/O window.
    space.put(0x1c, &[0xf0]);
    space.window(0x20, placed.window, 0);
    space.window(0x24, placed.prefetch_window, 1);
    if let Some((start, end)) = placed.prefetch_window {
        space.put(0x28, &start.to_le_bytes()[4..]);
        space.put(0x2c, &(end - 1).to_le_bytes()[4..]);
    }
}

fn capabilities(space: &mut Space, placed: &Placed) {
    let function = &placed.function;
    if let Some(control) = function.power {
        space.capability(POWER, 0x01);
        space.u16(POWER + 2, 0x0003);
        space.u16(POWER + 4, control);
    }
    if function.msi_x {
        space.capability(MSI_X, 0x11);
        space.u16(MSI_X + 2, 0x001f);
    }
    if let Some(number) = function.kind.number() {
        space.capability(EXPRESS, 0x10);
        express(space, placed, number);
    }
    if function.advanced_features {
        space.capability(ADVANCED_FEATURES, 0x13);
        // Transactions Pending and FLR.
        space.put(ADVANCED_FEATURES + 3, &[3]);
    }
}

fn express(space: &mut Space, placed: &Placed, number: u16) {
    let function = &placed.function;
    let slot = u16::from(function.slot.is_some()) << 8;
    space.u16(EXPRESS + 0x02, 2 | number << 4 | slot);
    space.u32(EXPRESS + 0x04, 0x8000 | u32::from(function.flr) << 28);
    let (generation, lanes, max_generation, max_lanes) = function.link;
    let max = u32::from(max_generation) | u32::from(max_lanes) << 4;
    let port = u32::from(function.port) << 24;
    space.u32(EXPRESS + 0x0c, max | 1 << 20 | port);
    let is_downstream = function.kind.is_downstream_port();
    if placed.link_up {
        let active = u16::from(is_downstream) << 13;
        space.u16(EXPRESS + 0x12, generation | lanes << 4 | active);
    }
    if let Some(number) = function.slot {
        space.u32(EXPRESS + 0x14, number << 19 | 1 << 6);
    }
    if function.ari && is_downstream {
        space.u32(EXPRESS + 0x24, 1 << 5);
        space.u16(EXPRESS + 0x28, 1 << 5);
    }
}

fn extended(space: &mut Space, placed: &Placed) {
    let function = &placed.function;
    space.extended(ERRORS, 0x0001, 2);
    if let Some((capability, control)) = function.acs {
        space.extended(ACS, 0x000d, 1);
        space.u16(ACS + 4, capability);
        space.u16(ACS + 6, control);
        space.u32(ACS + 8, function.acs_word);
    }
    if function.ari && !function.kind.is_bridge() {
        space.extended(ARI, 0x000e, 1);
    }
    if let Some(enabled) = function.ats {
        space.extended(ATS, 0x000f, 1);
        space.u16(ATS + 4, 0x0020);
        space.u16(ATS + 6, u16::from(enabled) << 15);
    }
    if let Some(all) = function.virtual_functions {
        space.extended(SRIOV, 0x0010, 1);
        space.u16(SRIOV + 0x08, 0x0009 | u16::from(function.ari) << 4);
        for at in [0x0c, 0x0e, 0x10] {
            space.u16(SRIOV + at, all.count);
        }
        space.u16(SRIOV + 0x14, all.first);
        space.u16(SRIOV + 0x16, all.stride);
        space.u16(SRIOV + 0x1a, all.device);
        if let Some(address) = placed.virtual_bars {
            space.bar(SRIOV + 0x24, 0, BarKind::Prefetchable64, address);
        }
    }
    if let Some(unmasked) = function.cxl_port {
        // A DVSEC of CXL: ports.
        space.extended(CXL_PORT, 0x0023, 1);
        space.u16(CXL_PORT + 0x4, 0x1e98);
        space.u16(CXL_PORT + 0x8, 3);
        space.u16(CXL_PORT + 0xc, unmasked);
    }
}
