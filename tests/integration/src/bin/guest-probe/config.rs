//! Access to configuration registers without the kernel's knowledge.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::pci::Function;

const COMMAND: u64 = 0x04;
const MEMORY_AND_MASTER: u8 = 0x06;
const MASTER: u8 = 0x04;
const BAR0: u64 = 0x10;
const BARS_BYTES: usize = 0x18;
const CAPABILITIES: u64 = 0x34;
const BRIDGE_MEMORY: u64 = 0x20;
/// Unit of bridge windows, in bytes.
pub(crate) const MIB: u64 = 1 << 20;

/// Configuration space of one function.
pub(crate) struct Config(File);

impl Config {
    pub(crate) fn of(function: &Function) -> io::Result<Self> {
        function.config().map(Self)
    }

    fn read<const N: usize>(&self, at: u64) -> io::Result<[u8; N]> {
        let mut data = [0; N];
        self.0.read_exact_at(&mut data, at)?;
        Ok(data)
    }

    /// Switches memory decode on or off; bus mastering stays on.
    pub(crate) fn decode(&self, on: bool) -> io::Result<()> {
        let value = if on { MEMORY_AND_MASTER } else { MASTER };
        self.0.write_all_at(&[value], COMMAND)
    }

    /// Moves a 32-bit BAR 0 to another address.
    pub(crate) fn move_bar0(&self, to: u64) -> io::Result<()> {
        let low = u32::try_from(to).map_err(io::Error::other)?;
        self.0.write_all_at(&low.to_le_bytes(), BAR0)
    }

    /// Reads all BARs, to restore them after the function has lost them.
    pub(crate) fn bars(&self) -> io::Result<[u8; BARS_BYTES]> {
        self.read(BAR0)
    }

    pub(crate) fn set_bars(&self, bars: &[u8; BARS_BYTES]) -> io::Result<()> {
        for (n, dword) in (0..).zip(bars.chunks(4)) {
            self.0.write_all_at(dword, BAR0 + n * 4)?;
        }
        Ok(())
    }

    /// Memory window of a bridge: its first address, and the first address after it.
    pub(crate) fn window(&self) -> io::Result<(u64, u64)> {
        let [a, b, c, d] = self.read(BRIDGE_MEMORY)?;
        let address = |low: u8, high: u8| u64::from(u16::from_le_bytes([low & 0xf0, high])) << 16;
        Ok((address(a, b), address(c, d) + MIB))
    }

    pub(crate) fn set_window(&self, start: u64, end: u64) -> io::Result<()> {
        let field = |address: u64| u16::try_from(address >> 16).map_err(io::Error::other);
        let [a, b] = field(start)?.to_le_bytes();
        let [c, d] = field(end.saturating_sub(MIB))?.to_le_bytes();
        self.0.write_all_at(&[a, b, c, d], BRIDGE_MEMORY)
    }

    /// Offset of a capability in the first 256 bytes.
    pub(crate) fn capability(&self, id: u8) -> io::Result<u64> {
        let [mut at] = self.read(CAPABILITIES)?;
        for _ in 0..48 {
            let [found, next] = self.read(u64::from(at))?;
            if found == id {
                return Ok(u64::from(at));
            }
            if next == 0 {
                break;
            }
            at = next;
        }
        Err(io::Error::other(format!("no capability {id:#x}")))
    }

    /// Sets power state 0 to 3 (PCI PM r1.2 §3.2.4).
    pub(crate) fn set_power(&self, state: u8) -> io::Result<()> {
        let at = self.capability(1)? + 4;
        let [status] = self.read(at)?;
        self.0.write_all_at(&[status & !3 | state], at)
    }
}
