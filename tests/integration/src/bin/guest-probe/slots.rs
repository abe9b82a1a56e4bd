//! Accesses to the guest's slot registers that bypass its kernel, as only a broken or hostile guest would make them.

use std::io;
use std::time::{Duration, Instant};

use crate::ports::Ports;

/// I/O port of the slot registers, as in the ACPI tables of p2p-vmm.
const FIRST: u16 = 0x620;
const COUNT: u16 = 24;
/// Offsets of the registers in bytes.
const EJECT: u16 = 8;
const SELECT: u16 = 12;
/// Numbers of the root bus and of those inside the switches.
const BUSES: std::ops::Range<u32> = 0..32;

/// Ejects everything in every slot, switches last.
pub(crate) fn eject() -> io::Result<bool> {
    let ports = Ports::open(FIRST, COUNT)?;
    for bus in BUSES.rev() {
        ports.write(SELECT, bus);
        ports.write(EJECT, u32::MAX);
    }
    Ok(true)
}

/// Reads and writes all registers for the given time, with valid and invalid numbers.
pub(crate) fn hammer(duration: Duration) -> io::Result<bool> {
    let ports = Ports::open(FIRST, COUNT)?;
    let started = Instant::now();
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = || {
        // xorshift64: Marsaglia, Xorshift RNGs (2003).
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    let mut accesses = 0_u64;
    while started.elapsed() < duration {
        for _ in 0..64 {
            let [offset, bus, kind, low, value @ ..] = next().to_le_bytes();
            let value = u32::from_le_bytes(value);
            let offset = u16::from(offset) % COUNT;
            match kind % 8 {
                0 => ports.write(SELECT, u32::from(bus) % BUSES.end),
                1 => ports.write(EJECT, u32::MAX),
                2 => ports.write(offset, value),
                3 => ports.write_byte(offset, low),
                _ => drop(ports.read(offset)),
            }
            accesses += 1;
        }
    }
    println!("hammered {accesses} times");
    Ok(true)
}
