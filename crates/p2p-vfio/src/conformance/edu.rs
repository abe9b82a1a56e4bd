//! DMA engine of the lab: QEMU's `edu` device (QEMU docs/specs/edu.rst), driven through VFIO.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use crate::pci::{PciBackend, Region};

/// Registers of the engine, in BAR 0.
pub(super) trait Registers {
    fn read(&self, register: u64, data: &mut [u8]) -> io::Result<()>;
    fn write(&self, register: u64, data: &[u8]) -> io::Result<()>;
}

impl<T: PciBackend> Registers for T {
    fn read(&self, register: u64, data: &mut [u8]) -> io::Result<()> {
        PciBackend::read(self, Region::Bar(0), register, data)
    }

    fn write(&self, register: u64, data: &[u8]) -> io::Result<()> {
        PciBackend::write(self, Region::Bar(0), register, data)
    }
}

const SOURCE: u64 = 0x80;
const DESTINATION: u64 = 0x88;
const COUNT: u64 = 0x90;
const COMMAND: u64 = 0x98;
const START: u64 = 1;
const OUT: u64 = 2;
/// Address of the device's buffer for its DMA engine. The CPU cannot access the buffer.
const BUFFER: u64 = 0x4_0000;
/// A transfer takes 100 ms; the margin is for slow emulation.
const TRANSFER: Duration = Duration::from_secs(10);

/// Copies a word from one bus address to another through the device's buffer.
pub(super) fn copy(device: &impl Registers, from: u64, to: u64) -> io::Result<()> {
    transfer(device, from, BUFFER, START)?;
    transfer(device, BUFFER, to, START | OUT)
}

fn transfer(
    device: &impl Registers,
    source: u64,
    destination: u64,
    command: u64,
) -> io::Result<()> {
    let write = |register, value: u64| device.write(register, &value.to_le_bytes());
    write(SOURCE, source)?;
    write(DESTINATION, destination)?;
    write(COUNT, 4)?;
    write(COMMAND, command)?;
    let started = Instant::now();
    loop {
        let mut status = [0; 8];
        device.read(COMMAND, &mut status)?;
        if u64::from_le_bytes(status) & START == 0 {
            return Ok(());
        }
        if started.elapsed() > TRANSFER {
            return Err(io::Error::from(io::ErrorKind::TimedOut));
        }
        thread::sleep(Duration::from_millis(2));
    }
}
