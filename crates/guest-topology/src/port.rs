//! A virtual PCIe port: the configuration space of a root port, or of an upstream or downstream port of a switch.
//!
//! Ports only route: they have no interrupts, no error reporting and no ACS. Because the switch has no ACS, a guest
//! without a virtual IOMMU uses the direct route between two devices below it (linux 7.2 drivers/pci/p2pdma.c:
//! calc_map_type_and_dist()).

use iommu_group::spec::{self, bridge, cap, express, header, pm};
use iommu_group::{Address, AddressRange, Gpa, Link};

/// Bytes of configuration space in use; the extended space is empty.
const SPACE: usize = spec::LEGACY_BYTES as usize;

/// Offsets of the capabilities.
const EXPRESS: u16 = 0x40;
const POWER: u16 = 0x80;
const SUBSYSTEM: u16 = 0x88;

/// Kind of a virtual port (PCIe r6.0 §7.5.3.2, device/port type).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortKind {
    /// Root port: a slot on the root bus, with a device or a switch below it.
    Root,
    /// Upstream port of a switch.
    Upstream,
    /// Downstream port: a slot of a switch.
    Downstream,
}

impl PortKind {
    fn code(self) -> u16 {
        match self {
            Self::Root => 4,
            Self::Upstream => 5,
            Self::Downstream => 6,
        }
    }

    fn has_slot(self) -> bool {
        self != Self::Upstream
    }

    /// Vendor and device ids: the generic root port for emulators in Red Hat's id space, and the Texas Instruments
    /// switch that emulators commonly use.
    fn identity(self) -> [u8; 4] {
        match self {
            Self::Root => [0x36, 0x1b, 0x0c, 0x00],
            Self::Upstream => [0x4c, 0x10, 0x32, 0x82],
            Self::Downstream => [0x4c, 0x10, 0x33, 0x82],
        }
    }
}

/// The three bus numbers of a bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BusNumbers {
    /// The bus that the bridge is on.
    pub primary: u8,
    /// The bus directly below it.
    pub secondary: u8,
    /// The highest bus below it.
    pub subordinate: u8,
}

/// A virtual port.
#[derive(Clone, Debug)]
pub struct VirtualPort {
    kind: PortKind,
    bytes: [u8; SPACE],
    writable: [u8; SPACE],
    /// The prefetchable window while the guest rewrites it: this takes four writes, and the first moves the limit below
    /// the base.
    rewritten: Option<AddressRange<Gpa>>,
    /// The last open state of each window.
    last: [Option<AddressRange<Gpa>>; 2],
}

impl VirtualPort {
    /// Creates a port in its state after reset: bus numbers 0, windows closed. `number` is the port number and slot
    /// number.
    pub fn new(kind: PortKind, number: u8, link: Link) -> Self {
        let mut port = Self {
            kind,
            bytes: [0; SPACE],
            writable: [0; SPACE],
            rewritten: None,
            last: [None; 2],
        };
        port.header();
        port.express(number, link);
        port.power();
        port.subsystem();
        port
    }

    fn put<const N: usize>(&mut self, at: u16, value: [u8; N]) {
        for (slot, byte) in self.bytes.iter_mut().skip(at.into()).zip(value) {
            *slot = byte;
        }
    }

    fn allow<const N: usize>(&mut self, at: u16, mask: [u8; N]) {
        for (slot, byte) in self.writable.iter_mut().skip(at.into()).zip(mask) {
            *slot = byte;
        }
    }

    /// PCI-to-PCI bridge r1.2 §3.2.
    fn header(&mut self) {
        self.put(header::VENDOR, self.kind.identity());
        // I/O, memory, bus master; parity and SERR# can be set without effect.
        self.allow(header::COMMAND, [0x47, 0x05]);
        self.put(header::STATUS, header::STATUS_CAPABILITIES.to_le_bytes());
        // PCI-to-PCI bridge.
        self.put(header::CLASS, [0x00, 0x04, 0x06]);
        self.allow(header::CACHE_LINE_SIZE, [0xff]);
        self.put(header::HEADER_TYPE, [header::LAYOUT_BRIDGE]);
        self.allow(bridge::PRIMARY_BUS, [0xff, 0xff, 0xff]);
        // No I/O below the bridge: base and limit read 0 and ignore writes (§3.2.5.6).
        self.put(bridge::IO_BASE, [0, 0]);
        self.allow(bridge::MEMORY_BASE, [0xf0, 0xff, 0xf0, 0xff]);
        self.allow(bridge::PREFETCH_BASE, [0xf0, 0xff, 0xf0, 0xff]);
        self.allow(bridge::PREFETCH_BASE_UPPER, [0xff; 8]);
        self.put(header::CAPABILITIES, [low_byte(EXPRESS)]);
        self.allow(header::INTERRUPT_LINE, [0xff]);
        // SERR#, secondary bus reset.
        self.allow(bridge::CONTROL, [0x43, 0x00]);
        self.close_windows();
    }

    /// PCIe r6.0 §7.5.3.
    fn express(&mut self, number: u8, link: Link) {
        let slot = if self.kind.has_slot() {
            express::FLAGS_SLOT
        } else {
            0
        };
        let flags = 2 | self.kind.code() << 4 | slot;
        let [flags_low, flags_high] = flags.to_le_bytes();
        self.put(
            EXPRESS,
            [cap::EXPRESS, low_byte(POWER), flags_low, flags_high],
        );
        // Payloads of up to 512 bytes, role-based error reporting (§7.5.3.3).
        self.put(
            EXPRESS + express::DEVICE_CAPABILITIES,
            0x0000_8002_u32.to_le_bytes(),
        );
        self.allow(EXPRESS + express::DEVICE_CONTROL, [0xff, 0x7f]);
        // Speed, width, port number; active-link reporting for a port with a slot.
        let (reporting, active) = if self.kind.has_slot() {
            (
                express::LINK_CAPABILITIES_ACTIVE,
                express::LINK_STATUS_ACTIVE,
            )
        } else {
            (0, 0)
        };
        let generation = u32::from(link.generation);
        let lanes = u32::from(link.lanes) << 4;
        let capability = generation | lanes | reporting | u32::from(number) << 24;
        self.put(
            EXPRESS + express::LINK_CAPABILITIES,
            capability.to_le_bytes(),
        );
        self.allow(EXPRESS + express::LINK_CONTROL, [0xf0, 0x00]);
        let status = u16::from(link.generation) | u16::from(link.lanes) << 4 | active;
        self.put(EXPRESS + express::LINK_STATUS, status.to_le_bytes());
        if self.kind.has_slot() {
            // The slot's number. ACPI reports hotplug in the slot.
            let capability = u32::from(number) << 19;
            self.put(
                EXPRESS + express::SLOT_CAPABILITIES,
                capability.to_le_bytes(),
            );
            self.allow(EXPRESS + express::SLOT_CONTROL, [0x3f, 0x00]);
            self.put(
                EXPRESS + express::SLOT_STATUS,
                express::SLOT_STATUS_PRESENT.to_le_bytes(),
            );
        }
        if self.kind == PortKind::Root {
            self.allow(EXPRESS + express::ROOT_CONTROL, [0x0f, 0x00]);
        }
        // All speeds up to the link's own, which is the target speed.
        let speeds = ((1_u32 << link.generation.min(7)) - 1) << 1;
        self.put(EXPRESS + express::LINK_CAPABILITIES_2, speeds.to_le_bytes());
        self.put(EXPRESS + express::LINK_CONTROL_2, [link.generation, 0]);
        self.allow(EXPRESS + express::LINK_CONTROL_2, [0x0f, 0x00]);
    }

    /// PCI power management r1.2 §3.2: D0 and D3hot, no PME; D3hot preserves the state.
    fn power(&mut self) {
        let next = low_byte(SUBSYSTEM);
        self.put(POWER, [cap::POWER_MANAGEMENT, next, 0x03, 0x00]);
        self.put(POWER + pm::CONTROL, pm::CONTROL_NO_SOFT_RESET.to_le_bytes());
        self.allow(POWER + pm::CONTROL, pm::CONTROL_STATE.to_le_bytes());
    }

    /// PCI-to-PCI bridge r1.2 §3.2.5.13.
    fn subsystem(&mut self) {
        self.put(SUBSYSTEM, [cap::SUBSYSTEM, 0x00, 0x00, 0x00]);
        self.put(SUBSYSTEM + 4, self.kind.identity());
    }

    /// The kind of the port.
    pub fn kind(&self) -> PortKind {
        self.kind
    }

    /// Reads configuration space; unimplemented bytes read as zero.
    pub fn config_read(&self, offset: u16, data: &mut [u8]) {
        let from = self.bytes.iter().skip(usize::from(offset));
        for (byte, value) in data.iter_mut().zip(from.chain(std::iter::repeat(&0))) {
            *byte = *value;
        }
    }

    /// Writes configuration space: writable bits take the value, all other bits are unchanged.
    /// A prefetchable window above 4 GiB stays open while Linux reprograms it, which it does whenever a device is added
    /// below a switch. Linux writes 0 to the limit's upper half, then the lower halves, then the base's upper half, and
    /// the limit's upper half last (linux 7.2 drivers/pci/setup-bus.c: `pci_setup_bridge_mmio_pref()`). These writes
    /// would close the window in between, although drivers and peers use the devices below it. From the 0 on, the old
    /// window is therefore in effect until the limit's upper half is written again.
    /// effect until the limit's upper half is written again.
    pub fn config_write(&mut self, offset: u16, data: &[u8]) {
        let before = self.prefetchable();
        self.write(offset, data);
        if offset == bridge::PREFETCH_LIMIT_UPPER && data.len() == 4 {
            let begins = self.rewritten.is_none() && data == [0; 4];
            self.rewritten =
                before.filter(|_| begins && self.dword(bridge::PREFETCH_BASE_UPPER) != 0);
        }
        self.remember_windows();
    }

    fn remember_windows(&mut self) {
        let open = self.open_windows();
        for (last, open) in self.last.iter_mut().zip(open) {
            *last = open.or(*last);
        }
    }

    fn write(&mut self, offset: u16, data: &[u8]) {
        let registers = self.bytes.iter_mut().zip(self.writable);
        for ((byte, mask), value) in registers.skip(usize::from(offset)).zip(data) {
            *byte = (*byte & !mask) | (value & mask);
        }
    }

    /// Sets the bus numbers, as firmware does.
    pub fn set_buses(&mut self, buses: BusNumbers) {
        self.put(
            bridge::PRIMARY_BUS,
            [buses.primary, buses.secondary, buses.subordinate],
        );
    }

    /// The bus numbers that the guest has programmed.
    pub fn buses(&self) -> BusNumbers {
        BusNumbers {
            primary: self.byte(bridge::PRIMARY_BUS),
            secondary: self.byte(bridge::SECONDARY_BUS),
            subordinate: self.byte(bridge::SUBORDINATE_BUS),
        }
    }

    /// Closes both windows: base above limit.
    fn close_windows(&mut self) {
        self.rewritten = None;
        self.put(bridge::MEMORY_BASE, [0xf0, 0xff, 0x00, 0x00]);
        self.put(bridge::PREFETCH_BASE, [0xf1, 0xff, 0x01, 0x00]);
        self.put(bridge::PREFETCH_BASE_UPPER, [0; 8]);
    }

    /// A byte of a register inside of the space.
    fn byte(&self, at: u16) -> u8 {
        self.bytes.get(usize::from(at)).copied().unwrap_or(0)
    }

    fn word(&self, at: u16) -> u16 {
        u16::from_le_bytes([self.byte(at), self.byte(at + 1)])
    }

    fn dword(&self, at: u16) -> u64 {
        u64::from(self.word(at)) | u64::from(self.word(at + 2)) << 16
    }

    /// Opens the windows, as firmware does: `memory` below 4 GiB, `prefetchable` anywhere, both in units of 1 MiB;
    /// `None` closes one. Turns memory decode and bus mastering on.
    pub fn set_windows(
        &mut self,
        memory: Option<AddressRange<Gpa>>,
        prefetchable: Option<AddressRange<Gpa>>,
    ) {
        self.close_windows();
        let bounds = |r: AddressRange<Gpa>| (r.start().value(), r.end().value() - 1);
        let upper = |address: u64| {
            let [_, _, low, high, ..] = address.to_le_bytes();
            [low & 0xf0, high]
        };
        if let Some((base, limit)) = memory.map(bounds) {
            self.put(bridge::MEMORY_BASE, upper(base));
            self.put(bridge::MEMORY_LIMIT, upper(limit));
        }
        if let Some((base, limit)) = prefetchable.map(bounds) {
            let [[base_low, base_high], [limit_low, limit_high]] = [upper(base), upper(limit)];
            self.put(
                bridge::PREFETCH_BASE,
                [base_low | bridge::PREFETCH_64BIT, base_high],
            );
            self.put(
                bridge::PREFETCH_LIMIT,
                [limit_low | bridge::PREFETCH_64BIT, limit_high],
            );
            let top = |address: u64| {
                let [.., a, b, c, d] = address.to_le_bytes();
                [a, b, c, d]
            };
            self.put(bridge::PREFETCH_BASE_UPPER, top(base));
            self.put(bridge::PREFETCH_LIMIT_UPPER, top(limit));
        }
        let on = header::COMMAND_MEMORY | header::COMMAND_BUS_MASTER;
        self.put(
            header::COMMAND,
            (self.word(header::COMMAND) | on).to_le_bytes(),
        );
        self.last = self.open_windows();
    }

    /// The open windows that the guest has programmed; none with memory decode off.
    pub fn windows(&self) -> impl Iterator<Item = AddressRange<Gpa>> {
        self.open_windows().into_iter().flatten()
    }

    /// The last open state of each window: the addresses that the guest uses below the port, also while the guest
    /// probes the port. Linux then turns memory decode off and writes all ones to the upper half of a base (linux 7.2
    /// drivers/pci/probe.c: `pci_read_bases()`, `pci_read_bridge_windows()`).
    pub fn last_windows(&self) -> impl Iterator<Item = AddressRange<Gpa>> {
        self.last.into_iter().flatten()
    }

    fn open_windows(&self) -> [Option<AddressRange<Gpa>>; 2] {
        match self.word(header::COMMAND) & header::COMMAND_MEMORY {
            0 => [None; 2],
            _ => [
                self.window(bridge::MEMORY_BASE, (0, 0)),
                self.prefetchable(),
            ],
        }
    }

    fn prefetchable(&self) -> Option<AddressRange<Gpa>> {
        let base = self.dword(bridge::PREFETCH_BASE_UPPER);
        let limit = self.dword(bridge::PREFETCH_LIMIT_UPPER);
        self.rewritten
            .or_else(|| self.window(bridge::PREFETCH_BASE, (base, limit)))
    }

    /// The window whose lower halves are at offset `at`; `None` if it is closed.
    fn window(&self, at: u16, high: (u64, u64)) -> Option<AddressRange<Gpa>> {
        let base = u64::from(self.word(at) & 0xfff0) << 16 | high.0 << 32;
        let limit = u64::from(self.word(at + 2) & 0xfff0) << 16 | 0xf_ffff | high.1 << 32;
        let len_bytes = limit.checked_sub(base)?.checked_add(1)?;
        AddressRange::new(Gpa::new(base), len_bytes)
    }
}

fn low_byte(offset: u16) -> u8 {
    offset.to_le_bytes()[0]
}

#[cfg(test)]
mod tests;
