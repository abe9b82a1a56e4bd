//! The lab's endpoint for tests of DMA between devices: `resources/qemu/hw/pci/lab_endpoint.c`.

use std::io;
use std::path::Path;

use crate::mapping::Mapping;
use crate::pci::Function;

pub(crate) const VENDOR: u16 = 0x1af4;
pub(crate) const DEVICE: u16 = 0x10f0;

/// Registers in BAR 0.
const SOURCE: usize = 0x08;
const DESTINATION: usize = 0x10;
const LENGTH: usize = 0x18;
const REQUESTER: usize = 0x20;
const COMMAND: usize = 0x28;
const STATUS: usize = 0x30;
const ARRIVALS: usize = 0x40;
const ORIGIN: usize = 0x60;
const MAILBOX: usize = 0x8000;
pub(crate) const REGISTERS_SIZE: usize = 0x10000;

/// Flags of a copy command besides its addresses.
const LOCAL_SOURCE: u64 = 1 << 0;
const LOCAL_DESTINATION: u64 = 1 << 1;

/// How the requests of a copy are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Untranslated, as by most functions.
    Plain,
    /// Translated by ATS first.
    Translated,
    /// Untranslated, but marked as translated.
    Forged,
    /// With the requester ID of another function.
    Spoofed(u16),
}

/// Result of a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    Done,
    ReadFailed,
    WriteFailed,
    NotTranslated,
}

/// An endpoint that is ready for use.
pub(crate) struct Endpoint {
    pub(crate) bdf: String,
    /// Bus address of its registers.
    bar0: u64,
    registers: Mapping,
    /// Bus address of its memory, BAR 2.
    bar2: u64,
    /// The start of its memory.
    memory: Mapping,
}

/// The longest copy, in bytes.
const LONGEST: u64 = 1 << 20;

impl Endpoint {
    /// Finds every endpoint, in address order.
    pub(crate) fn find_all() -> io::Result<Vec<Self>> {
        Self::find(|_| true)
    }

    /// Finds the endpoints with wanted addresses; the others are not touched.
    pub(crate) fn find(wanted: impl Fn(&str) -> bool) -> io::Result<Vec<Self>> {
        let functions = Function::find(Path::new("/sys"), VENDOR, DEVICE)?;
        let functions = functions.iter().filter(|function| wanted(&function.bdf));
        functions.map(Self::open).collect()
    }

    pub(crate) fn open(function: &Function) -> io::Result<Self> {
        function.enable()?;
        let (bar0, _, registers) = function.bar0()?;
        let (bar2, size, memory) = function.bar(2)?;
        let size = size.min(LONGEST);
        Ok(Self {
            bdf: function.bdf.clone(),
            bar0,
            registers: Mapping::of_file(&registers, REGISTERS_SIZE)?,
            bar2,
            memory: Mapping::of_file(&memory, usize::try_from(size).map_err(io::Error::other)?)?,
        })
    }

    /// Bus address of the memory that records incoming requests.
    pub(crate) fn mailbox(&self) -> u64 {
        self.bar0.saturating_add(MAILBOX as u64)
    }

    /// Reads eight bytes from a bus address, if they arrive.
    pub(crate) fn fetch(&self, from: u64, mode: Mode) -> io::Result<Result<u64, Status>> {
        self.fetch_bytes(from, 8, mode)
    }

    /// Reads up to eight bytes from a bus address, if they arrive.
    pub(crate) fn fetch_bytes(
        &self,
        from: u64,
        count: u64,
        mode: Mode,
    ) -> io::Result<Result<u64, Status>> {
        self.memory.write_u64(0, 0)?;
        let status = self.copy(from, 0, count, LOCAL_DESTINATION, mode)?;
        let word = self.memory.read_u64(0)?;
        Ok(match status {
            Status::Done => Ok(word),
            status => Err(status),
        })
    }

    /// Writes eight bytes to a bus address.
    pub(crate) fn store(&self, to: u64, word: u64, mode: Mode) -> io::Result<Status> {
        self.memory.write_u64(0, word)?;
        self.copy(0, to, 8, LOCAL_SOURCE, mode)
    }

    /// Copies as much of its memory as one copy can to the memory of another endpoint, and compares all of it. Returns
    /// the status of the copy, the number of words that arrived, and how many of them are the words that were sent.
    pub(crate) fn copy_memory(&self, to: &Self, mode: Mode) -> io::Result<(Status, u64, u64)> {
        let places = || (0..LONGEST).step_by(8);
        let at = |place: u64| usize::try_from(place).map_err(io::Error::other);
        let word = |place: u64| 0xc09b_0000_0000_0000 | self.bar2 << 8 ^ place;
        for place in places() {
            self.memory.write_u64(at(place)?, word(place))?;
            to.memory.write_u64(at(place)?, 0)?;
        }
        let status = self.copy(0, to.bar2, LONGEST, LOCAL_SOURCE, mode)?;
        let (mut arrived, mut right) = (0, 0);
        for place in places() {
            let found = to.memory.read_u64(at(place)?)?;
            arrived += u64::from(found != 0);
            right += u64::from(found == word(place));
        }
        Ok((status, arrived, right))
    }

    fn copy(
        &self,
        source: u64,
        destination: u64,
        count: u64,
        local: u64,
        mode: Mode,
    ) -> io::Result<Status> {
        let mode = match mode {
            Mode::Plain => 0,
            Mode::Translated => 1 << 2,
            Mode::Forged => 1 << 3,
            Mode::Spoofed(requester) => {
                self.registers.write_u64(REQUESTER, requester.into())?;
                1 << 4
            }
        };
        self.registers.write_u64(SOURCE, source)?;
        self.registers.write_u64(DESTINATION, destination)?;
        self.registers.write_u64(LENGTH, count)?;
        self.registers.write_u64(COMMAND, local | mode)?;
        match self.registers.read_u64(STATUS)? {
            0 => Ok(Status::Done),
            2 => Ok(Status::ReadFailed),
            3 => Ok(Status::WriteFailed),
            4 => Ok(Status::NotTranslated),
            other => Err(io::Error::other(format!("{}: status {other}", self.bdf))),
        }
    }

    /// Clears the record of incoming requests.
    pub(crate) fn clear_arrivals(&self) -> io::Result<()> {
        self.registers.write_u64(ARRIVALS, 0)
    }

    /// Number of requests that have arrived, and the requester ID of the first.
    pub(crate) fn arrivals(&self) -> io::Result<(u64, u16)> {
        let count = self.registers.read_u64(ARRIVALS)?;
        let origin = self.registers.read_u64(ORIGIN)? & 0xffff;
        Ok((count, u16::try_from(origin).unwrap_or_default()))
    }

    /// Reads the first word of the mailbox by the processor.
    pub(crate) fn mail(&self) -> io::Result<u64> {
        self.registers.read_u64(MAILBOX)
    }
}
