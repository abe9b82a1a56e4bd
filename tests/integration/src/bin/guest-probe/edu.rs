//! QEMU's `edu` device: a simple DMA engine (QEMU docs/specs/edu.rst).

use std::fs::OpenOptions;
use std::io;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::mapping::{Mapping, PAGE};
use crate::pci::Function;

pub(crate) const VENDOR: u16 = 0x1234;
pub(crate) const DEVICE: u16 = 0x11e8;

/// Register that stores the inverse of the value written to it: 32 bits wide.
pub(crate) const LIVENESS: u32 = 0x04;

const DMA_SOURCE: usize = 0x80;
const DMA_DESTINATION: usize = 0x88;
const DMA_COUNT: usize = 0x90;
const DMA_COMMAND: usize = 0x98;

/// Starts a transfer; reads as 1 while a transfer is in progress.
const DMA_START: u64 = 1;
/// Direction out of the device; into the device without this bit.
const DMA_OUT: u64 = 2;

/// Address of the device's own buffer in its DMA engine.
const BUFFER: u64 = 0x40000;

/// Timeout of one transfer: the device itself waits 100 ms, the rest allows for slow emulation.
const TRANSFER: Duration = Duration::from_secs(60);

/// A device that is ready for use.
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
    /// Finds every device in the guest, in address order.
    pub(crate) fn find_all() -> io::Result<Vec<Self>> {
        Function::find(Path::new("/sys"), VENDOR, DEVICE)?
            .iter()
            .map(Self::open)
            .collect()
    }

    /// The device whose registers are now at a guest-physical address.
    pub(crate) fn at(bar0: u64) -> io::Result<Self> {
        let memory = OpenOptions::new().read(true).write(true).open("/dev/mem")?;
        Ok(Self {
            bdf: format!("{bar0:#x}"),
            bar0,
            registers: Mapping::of_file_at(&memory, bar0, PAGE)?,
        })
    }

    pub(crate) fn open(function: &Function) -> io::Result<Self> {
        function.enable()?;
        let (bar0, size, file) = function.bar0()?;
        let size = usize::try_from(size).map_err(io::Error::other)?;
        Ok(Self {
            bdf: function.bdf.clone(),
            bar0,
            registers: Mapping::of_file(&file, size)?,
        })
    }

    /// Reads the liveness register by the processor.
    pub(crate) fn liveness(&self) -> io::Result<u32> {
        self.registers.read_u32(LIVENESS as usize)
    }

    /// Writes the liveness register by the processor.
    pub(crate) fn set_liveness(&self, value: u32) -> io::Result<()> {
        self.registers.write_u32(LIVENESS as usize, value)
    }

    /// Transfers one word by DMA from a bus address into the device's buffer.
    pub(crate) fn fetch(&self, from: u64) -> io::Result<Result<(), Stuck>> {
        self.transfer(from, BUFFER, DMA_START)
    }

    /// Transfers one word by DMA from the device's buffer to a bus address.
    pub(crate) fn store(&self, to: u64) -> io::Result<Result<(), Stuck>> {
        self.transfer(BUFFER, to, DMA_START | DMA_OUT)
    }

    /// Keeps the device busy by repeatedly starting transfers of a word to a bus address.
    pub(crate) fn keep_storing(&self, to: u64) -> io::Result<()> {
        if self.is_busy()? {
            return Ok(());
        }
        self.start(BUFFER, to, DMA_START | DMA_OUT)
    }

    /// Waits until no transfer is in progress.
    pub(crate) fn finish(&self) -> io::Result<()> {
        let started = Instant::now();
        while self.is_busy()? {
            if started.elapsed() > TRANSFER {
                return Err(io::Error::other("a transfer does not end"));
            }
            thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    fn is_busy(&self) -> io::Result<bool> {
        Ok(self.registers.read_u64(DMA_COMMAND)? & DMA_START != 0)
    }

    fn start(&self, source: u64, destination: u64, command: u64) -> io::Result<()> {
        self.registers.write_u64(DMA_SOURCE, source)?;
        self.registers.write_u64(DMA_DESTINATION, destination)?;
        self.registers.write_u64(DMA_COUNT, 4)?;
        self.registers.write_u64(DMA_COMMAND, command)
    }

    fn transfer(
        &self,
        source: u64,
        destination: u64,
        command: u64,
    ) -> io::Result<Result<(), Stuck>> {
        self.start(source, destination, command)?;
        let started = Instant::now();
        while self.is_busy()? {
            if started.elapsed() > TRANSFER {
                return Ok(Err(Stuck));
            }
            thread::sleep(Duration::from_millis(2));
        }
        Ok(Ok(()))
    }
}
