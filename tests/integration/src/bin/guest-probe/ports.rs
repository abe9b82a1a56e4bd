//! The I/O ports of the machine.

#![allow(unsafe_code, reason = "port access has no safe form")]

use std::arch::asm;
use std::io;

/// I/O ports that this program may use.
#[derive(Clone, Copy)]
pub(crate) struct Ports {
    first: u16,
    count: u16,
}

impl Ports {
    /// Requests access to `count` ports from `first`.
    pub(crate) fn open(first: u16, count: u16) -> io::Result<Self> {
        // SAFETY: the call changes only the permissions of this thread and touches no memory.
        let result = unsafe { libc::ioperm(first.into(), count.into(), 1) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { first, count })
    }

    /// The first port of `len` bytes at an offset, if all of them are in the range.
    fn port(self, offset: u16, len: u16) -> Option<u16> {
        let end = offset.checked_add(len)?;
        let port = self.first.checked_add(offset)?;
        (end <= self.count).then_some(port)
    }

    /// Reads a double word; `None` outside the range.
    pub(crate) fn read(self, offset: u16) -> Option<u32> {
        let port = self.port(offset, 4)?;
        let value: u32;
        // SAFETY: the kernel has granted these ports, and reading them touches no memory.
        unsafe {
            asm!("in eax, dx", in("dx") port, out("eax") value, options(nomem, nostack));
        }
        Some(value)
    }

    /// Writes a double word; does nothing outside the range.
    pub(crate) fn write(self, offset: u16, value: u32) {
        let Some(port) = self.port(offset, 4) else {
            return;
        };
        // SAFETY: the kernel has granted these ports; the device behind them cannot access this program's memory.
        unsafe {
            asm!("out dx, eax", in("dx") port, in("eax") value, options(nostack));
        }
    }

    /// Writes a byte; does nothing outside the range.
    pub(crate) fn write_byte(self, offset: u16, value: u8) {
        let Some(port) = self.port(offset, 1) else {
            return;
        };
        // SAFETY: as for a double word.
        unsafe {
            asm!("out dx, al", in("dx") port, in("al") value, options(nostack));
        }
    }
}
