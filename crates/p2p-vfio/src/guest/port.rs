//! A virtual PCIe port: the configuration space of a root port or of one end of a switch.
//!
//! Ports only route: they have no interrupts, no error reporting and no ACS. A switch without ACS
//! is what makes a guest without a virtual IOMMU use the short way between two devices below it
//! (linux 7.2 drivers/pci/p2pdma.c: calc_map_type_and_dist()).

use iommu_group::{Address, AddressRange, Gpa};

/// Bytes of configuration space with content; the extended space is empty.
const SPACE: usize = 256;

const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const CLASS: usize = 0x09;
const HEADER_TYPE: usize = 0x0e;
const PRIMARY: usize = 0x18;
const SECONDARY: usize = 0x19;
const SUBORDINATE: usize = 0x1a;
const IO_BASE: usize = 0x1c;
const MEMORY: usize = 0x20;
const PREFETCHABLE: usize = 0x24;
const PREFETCHABLE_HIGH: usize = 0x28;
const CAPABILITIES: usize = 0x34;
const BRIDGE_CONTROL: usize = 0x3e;

const EXPRESS: usize = 0x40;
const POWER: usize = 0x80;
const SUBSYSTEM: usize = 0x88;

/// Granularity of bridge memory windows in bytes (PCI-to-PCI bridge r1.2 §3.2.5.8).
pub(super) const WINDOW_ALIGN: u64 = 1 << 20;

/// What a virtual port is (PCIe r6.0 §7.5.3.2, device/port type).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortKind {
    /// On the root bus; a slot or a switch is below it.
    Root,
    /// Top of a switch.
    Upstream,
    /// A slot of a switch.
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

    /// Vendor and device: the generic root port that Red Hat's number space has for emulators, and
    /// the switch of Texas Instruments that guests have met in emulators for years.
    fn identity(self) -> [u8; 4] {
        match self {
            Self::Root => [0x36, 0x1b, 0x0c, 0x00],
            Self::Upstream => [0x4c, 0x10, 0x32, 0x82],
            Self::Downstream => [0x4c, 0x10, 0x33, 0x82],
        }
    }
}

/// Speed and width of a link as its capability and status registers encode them (PCIe r6.0 §7.5.3.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// 1: 2.5 GT/s, 2: 5, 3: 8, 4: 16, 5: 32, 6: 64.
    pub speed: u8,
    /// Lanes, 1–32.
    pub width: u8,
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
    /// The prefetchable window while the guest is in the middle of writing it: that takes four writes, the first of
    /// which moves the limit below the base.
    rewritten: Option<AddressRange<Gpa>>,
    /// Each window as it was when it was open last.
    last: [Option<AddressRange<Gpa>>; 2],
}

impl VirtualPort {
    /// A port as after reset: bus numbers 0, windows closed. `number` is that of port and slot.
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

    fn put<const N: usize>(&mut self, at: usize, value: [u8; N]) {
        for (slot, byte) in self.bytes.iter_mut().skip(at).zip(value) {
            *slot = byte;
        }
    }

    fn allow<const N: usize>(&mut self, at: usize, mask: [u8; N]) {
        for (slot, byte) in self.writable.iter_mut().skip(at).zip(mask) {
            *slot = byte;
        }
    }

    /// PCI-to-PCI bridge r1.2 §3.2.
    fn header(&mut self) {
        self.put(0x00, self.kind.identity());
        // I/O, memory, bus master; parity and SERR# have nothing to report but may be set.
        self.allow(COMMAND, [0x47, 0x05]);
        self.put(STATUS, [0x10, 0x00]);
        self.put(CLASS, [0x00, 0x04, 0x06]);
        self.allow(0x0c, [0xff]);
        self.put(HEADER_TYPE, [0x01]);
        self.allow(PRIMARY, [0xff, 0xff, 0xff]);
        // No I/O behind the bridge: base and limit read 0 and ignore writes (§3.2.5.6).
        self.put(IO_BASE, [0, 0]);
        self.allow(MEMORY, [0xf0, 0xff, 0xf0, 0xff]);
        self.put(PREFETCHABLE, [0x01, 0, 0x01, 0]);
        self.allow(PREFETCHABLE, [0xf0, 0xff, 0xf0, 0xff]);
        self.allow(PREFETCHABLE_HIGH, [0xff; 8]);
        self.put(CAPABILITIES, [low_byte(EXPRESS)]);
        self.allow(0x3c, [0xff]);
        // SERR#, secondary bus reset.
        self.allow(BRIDGE_CONTROL, [0x43, 0x00]);
        self.close_windows();
    }

    /// PCIe r6.0 §7.5.3.
    fn express(&mut self, number: u8, link: Link) {
        let slot = u16::from(self.kind.has_slot()) << 8;
        let flags = 2 | self.kind.code() << 4 | slot;
        let [flags_low, flags_high] = flags.to_le_bytes();
        self.put(EXPRESS, [0x10, low_byte(POWER), flags_low, flags_high]);
        // Device: payloads of up to 512 bytes, role-based error reporting (§7.5.3.3).
        self.put(EXPRESS + 4, 0x0000_8002_u32.to_le_bytes());
        self.allow(EXPRESS + 8, [0xff, 0x7f]);
        // Link: speed, width, port number; active-link reporting where there is a slot.
        let reporting = u32::from(self.kind.has_slot()) << 20;
        let speed = u32::from(link.speed);
        let width = u32::from(link.width) << 4;
        let capability = speed | width | reporting | u32::from(number) << 24;
        self.put(EXPRESS + 0x0c, capability.to_le_bytes());
        self.allow(EXPRESS + 0x10, [0xf0, 0x00]);
        let active = if self.kind.has_slot() { 1 << 13 } else { 0 };
        let status = u16::from(link.speed) | u16::from(link.width) << 4 | active;
        self.put(EXPRESS + 0x12, status.to_le_bytes());
        if self.kind.has_slot() {
            // Slot: its number; what comes and goes there is told by ACPI.
            let capability = u32::from(number) << 19;
            self.put(EXPRESS + 0x14, capability.to_le_bytes());
            self.allow(EXPRESS + 0x18, [0x3f, 0x00]);
            self.put(EXPRESS + 0x1a, [0x40, 0x00]);
        }
        if self.kind == PortKind::Root {
            self.allow(EXPRESS + 0x1c, [0x0f, 0x00]);
        }
        // Link capabilities 2: every speed up to the link's own; link control 2: that speed.
        let speeds = ((1_u32 << link.speed.min(7)) - 1) << 1;
        self.put(EXPRESS + 0x2c, speeds.to_le_bytes());
        self.put(EXPRESS + 0x30, [link.speed, 0]);
        self.allow(EXPRESS + 0x30, [0x0f, 0x00]);
    }

    /// PCI power management r1.2 §3.2: D0 and D3hot, no PME; state survives D3hot.
    fn power(&mut self) {
        self.put(POWER, [0x01, low_byte(SUBSYSTEM), 0x03, 0x00, 0x08, 0x00]);
        self.allow(POWER + 4, [0x03]);
    }

    /// PCI-to-PCI bridge r1.2 §3.2.5.13.
    fn subsystem(&mut self) {
        self.put(SUBSYSTEM, [0x0d, 0x00, 0x00, 0x00]);
        self.put(SUBSYSTEM + 4, self.kind.identity());
    }

    /// What the port is.
    pub fn kind(&self) -> PortKind {
        self.kind
    }

    /// Reads configuration space; zeros where there is nothing.
    pub fn config_read(&self, offset: u16, data: &mut [u8]) {
        let from = self.bytes.iter().skip(usize::from(offset));
        for (byte, value) in data.iter_mut().zip(from.chain(std::iter::repeat(&0))) {
            *byte = *value;
        }
    }

    /// Writes configuration space: the bits that may be written take the value, others keep theirs.
    ///
    /// A prefetchable window above 4 GiB stays open while Linux programs it anew, which it does whenever something is
    /// added below a switch: limit's upper half 0, lower halves, upper halves, the limit's last (linux 7.2
    /// drivers/pci/setup-bus.c: `pci_setup_bridge_mmio_pref()`). It would be closed in between, for devices whose
    /// drivers and peers use them. From that 0 on, the window is what it was until the limit's upper half is written
    /// again.
    pub fn config_write(&mut self, offset: u16, data: &[u8]) {
        let limit_high = u16::from_le_bytes([low_byte(PREFETCHABLE_HIGH + 4), 0]);
        let before = self.prefetchable();
        self.write(offset, data);
        if offset == limit_high && data.len() == 4 {
            let begins = self.rewritten.is_none() && data == [0; 4];
            self.rewritten = before.filter(|_| begins && self.dword(PREFETCHABLE_HIGH) != 0);
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

    /// Numbers the buses, as firmware does.
    pub fn set_buses(&mut self, buses: BusNumbers) {
        self.put(PRIMARY, [buses.primary, buses.secondary, buses.subordinate]);
    }

    /// The bus numbers that the guest has programmed.
    pub fn buses(&self) -> BusNumbers {
        BusNumbers {
            primary: self.bytes[PRIMARY],
            secondary: self.bytes[SECONDARY],
            subordinate: self.bytes[SUBORDINATE],
        }
    }

    /// Both windows closed: base above limit.
    fn close_windows(&mut self) {
        self.rewritten = None;
        self.put(MEMORY, [0xf0, 0xff, 0x00, 0x00]);
        self.put(PREFETCHABLE, [0xf1, 0xff, 0x01, 0x00]);
        self.put(PREFETCHABLE_HIGH, [0; 8]);
    }

    fn word(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.bytes[at], self.bytes[at + 1]])
    }

    fn dword(&self, at: usize) -> u64 {
        u64::from(self.word(at)) | u64::from(self.word(at + 2)) << 16
    }

    /// Opens the windows, as firmware does: `memory` below 4 GiB, `prefetchable` anywhere, both in
    /// units of 1 MiB; `None` closes one. Memory decode and bus mastering go on.
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
            self.put(MEMORY, upper(base));
            self.put(MEMORY + 2, upper(limit));
        }
        if let Some((base, limit)) = prefetchable.map(bounds) {
            let [[base_low, base_high], [limit_low, limit_high]] = [upper(base), upper(limit)];
            self.put(PREFETCHABLE, [base_low | 1, base_high]);
            self.put(PREFETCHABLE + 2, [limit_low | 1, limit_high]);
            let top = |address: u64| {
                let [.., a, b, c, d] = address.to_le_bytes();
                [a, b, c, d]
            };
            self.put(PREFETCHABLE_HIGH, top(base));
            self.put(PREFETCHABLE_HIGH + 4, top(limit));
        }
        self.bytes[COMMAND] |= 0x06;
        self.last = self.open_windows();
    }

    /// The windows that the guest has programmed and that are open; none with memory decode off.
    pub fn windows(&self) -> impl Iterator<Item = AddressRange<Gpa>> {
        self.open_windows().into_iter().flatten()
    }

    /// The windows, each as it was when it was open last: what the guest means to have below the port, also while it
    /// looks at the port. Linux takes memory decode away and writes all ones to the upper half of a base for that
    /// (linux 7.2 drivers/pci/probe.c: `pci_read_bases()`, `pci_read_bridge_windows()`).
    pub fn last_windows(&self) -> impl Iterator<Item = AddressRange<Gpa>> {
        self.last.into_iter().flatten()
    }

    fn open_windows(&self) -> [Option<AddressRange<Gpa>>; 2] {
        match self.bytes[COMMAND] & 0x02 {
            0 => [None; 2],
            _ => [self.window(MEMORY, (0, 0)), self.prefetchable()],
        }
    }

    fn prefetchable(&self) -> Option<AddressRange<Gpa>> {
        let base = self.dword(PREFETCHABLE_HIGH);
        let limit = self.dword(PREFETCHABLE_HIGH + 4);
        self.rewritten
            .or_else(|| self.window(PREFETCHABLE, (base, limit)))
    }

    /// The window whose lower halves are at `at`; `None` if it is closed.
    fn window(&self, at: usize, high: (u64, u64)) -> Option<AddressRange<Gpa>> {
        let base = u64::from(self.word(at) & 0xfff0) << 16 | high.0 << 32;
        let limit = u64::from(self.word(at + 2) & 0xfff0) << 16 | 0xf_ffff | high.1 << 32;
        let len_bytes = limit.checked_sub(base)?.checked_add(1)?;
        AddressRange::new(Gpa::new(base), len_bytes)
    }
}

fn low_byte(offset: usize) -> u8 {
    offset.to_le_bytes()[0]
}

#[cfg(test)]
mod tests;
