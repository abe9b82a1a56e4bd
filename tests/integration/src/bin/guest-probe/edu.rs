//! QEMU's `edu` device: a DMA engine that anybody can drive (QEMU docs/specs/edu.rst).

use std::io;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::mapping::Mapping;
use crate::pci::Function;

const VENDOR: u16 = 0x1234;
const DEVICE: u16 = 0x11e8;

/// Stores the inverse of what is written to it: 32 bits wide.
pub(crate) const LIVENESS: u32 = 0x04;

const DMA_SOURCE: usize = 0x80;
const DMA_DESTINATION: usize = 0x88;
const DMA_COUNT: usize = 0x90;
const DMA_COMMAND: usize = 0x98;

/// Also the bit that says a transfer is under way.
const DMA_START: u64 = 1;
/// Out of the device; into it without.
const DMA_OUT: u64 = 2;

/// The device's own buffer, as its DMA engine addresses it.
const BUFFER: u64 = 0x40000;

/// How long one transfer may take: the device waits 100 ms by itself, the rest is for slow emulation.
const TRANSFER: Duration = Duration::from_secs(10);

/// A device, ready for use.
pub(crate) struct Edu {
    pub(crate) bdf: String,
    /// Guest-physical address of its registers.
    pub(crate) bar0: u64,
    registers: Mapping,
}

/// The device did not end a transfer in time.
#[derive(Debug)]
pub(crate) struct Stuck;

impl Edu {
    /// Every device in the guest, in address order.
    pub(crate) fn find_all() -> io::Result<Vec<Self>> {
        Function::find(Path::new("/sys"), VENDOR, DEVICE)?
            .iter()
            .map(Self::open)
            .collect()
    }

    fn open(function: &Function) -> io::Result<Self> {
        function.enable()?;
        let (bar0, size, file) = function.bar0()?;
        let size = usize::try_from(size).map_err(io::Error::other)?;
        Ok(Self {
            bdf: function.bdf.clone(),
            bar0,
            registers: Mapping::of_file(&file, size)?,
        })
    }

    /// The liveness register.
    pub(crate) fn liveness(&self) -> io::Result<u32> {
        self.registers.read_u32(LIVENESS as usize)
    }

    /// Writes the liveness register by the processor.
    pub(crate) fn set_liveness(&self, value: u32) -> io::Result<()> {
        self.registers.write_u32(LIVENESS as usize, value)
    }

    /// DMA of one word from a bus address into the device's buffer.
    pub(crate) fn fetch(&self, from: u64) -> io::Result<Result<(), Stuck>> {
        self.transfer(from, BUFFER, DMA_START)
    }

    /// DMA of one word from the device's buffer to a bus address.
    pub(crate) fn store(&self, to: u64) -> io::Result<Result<(), Stuck>> {
        self.transfer(BUFFER, to, DMA_START | DMA_OUT)
    }

    fn transfer(
        &self,
        source: u64,
        destination: u64,
        command: u64,
    ) -> io::Result<Result<(), Stuck>> {
        self.registers.write_u64(DMA_SOURCE, source)?;
        self.registers.write_u64(DMA_DESTINATION, destination)?;
        self.registers.write_u64(DMA_COUNT, 4)?;
        self.registers.write_u64(DMA_COMMAND, command)?;
        let started = Instant::now();
        while self.registers.read_u64(DMA_COMMAND)? & DMA_START != 0 {
            if started.elapsed() > TRANSFER {
                return Ok(Err(Stuck));
            }
            thread::sleep(Duration::from_millis(2));
        }
        Ok(Ok(()))
    }
}
