//! The disturbances of devices.

use std::fs;
use std::io;
use std::path::Path;
use std::thread;
use std::time::Duration;

use super::Stage;

use crate::config::{Config, MIB};
use crate::edu::{Edu, LIVENESS};
use crate::mapping::{Mapping, PAGE};
use crate::pci::Function;

/// Number of addresses that the target is moved to, one MiB each.
const PLACES: u64 = 8;
/// One in this many moves is checked: DMA takes 100 ms.
const LOOK_EVERY: u32 = 100;

fn liveness(bar: u64) -> u64 {
    bar + u64::from(LIVENESS)
}

/// Switches memory decode off and on. While it is off, no data arrives, because the host's IOMMU blocks it. The host's
/// kernel reports only the first few faults, so one transfer is made for that before all others.
pub(super) fn decode(stage: &mut Stage, rounds: u32) -> io::Result<()> {
    let config = Config::of(&stage.target)?;
    let (target, engine) = (Edu::open(&stage.target)?, Edu::open(&stage.peer)?);
    target.set_liveness(0)?;
    config.decode(false)?;
    let word = stage.next_word();
    stage.store(&engine, liveness(stage.home), word)?;
    config.decode(true)?;
    if target.liveness()? != !0 {
        return Err(io::Error::other("a device without decode was reached"));
    }
    for _ in 0..rounds {
        stage.engine.keep_storing(liveness(stage.home))?;
        config.decode(false)?;
        stage.engine.keep_storing(liveness(stage.home))?;
        config.decode(true)?;
    }
    stage.check_home()
}

/// Switches memory decode off and on, and checks after each time that DMA works again.
pub(super) fn decode_and_look(stage: &mut Stage, rounds: u32) -> io::Result<()> {
    for _ in 0..rounds {
        decode(stage, 1)?;
    }
    Ok(())
}

/// The ports above a function. The windows of those that are shared have room for [`PLACES`].
struct Ports {
    own: Config,
    window: (u64, u64),
    shared: Vec<(Config, (u64, u64))>,
    /// Address of the first place.
    free: u64,
}

impl Ports {
    fn open(function: &Function) -> io::Result<Self> {
        let bridges = function.bridges()?;
        let mut configs = bridges.iter().map(Config::of);
        let own = configs.next().ok_or(io::ErrorKind::NotFound)??;
        let mut shared = Vec::new();
        for config in configs {
            let config = config?;
            let window = config.window()?;
            shared.push((config, window));
        }
        let free = gap(&fs::read_to_string("/proc/iomem")?, PLACES * MIB);
        let free =
            free.ok_or_else(|| io::Error::other("the host bridge has no room for a move"))?;
        for (config, (start, end)) in &shared {
            // The window covers both places and everything between them.
            config.set_window(free.min(*start), (free + PLACES * MIB).max(*end))?;
        }
        Ok(Self {
            window: own.window()?,
            own,
            shared,
            free,
        })
    }

    fn close(self) -> io::Result<()> {
        self.own.set_window(self.window.0, self.window.1)?;
        for (config, (start, end)) in self.shared {
            config.set_window(start, end)?;
        }
        Ok(())
    }
}

/// The first `len_bytes` bytes below 4 GiB, in whole MiB, that are in the host bridge's window and that no bridge below
/// it uses, from `/proc/iomem`. Nested entries are indented by two blanks.
fn gap(iomem: &str, len_bytes: u64) -> Option<u64> {
    let range = |line: &str| {
        let (start, last) = line.trim().split_once(" : ")?.0.split_once('-')?;
        let number = |text| u64::from_str_radix(text, 16).ok();
        Some((number(start)?, number(last)?.checked_add(1)?))
    };
    let mut at: Option<(u64, u64)> = None;
    for line in iomem.lines().chain([""]) {
        let depth = line.len() - line.trim_start().len();
        let found = range(line);
        // The gap from the end of the previous entry to the start of this one, or to the end of the window.
        if let Some((free, end)) = at {
            let until = found.filter(|_| depth == 2).map_or(end, |(start, _)| start);
            if depth <= 2 && free + len_bytes <= until {
                return Some(free);
            }
        }
        match (depth, found) {
            (0, Some((start, end))) if line.ends_with("PCI Bus 0000:00") && end <= 1 << 32 => {
                at = Some((start.next_multiple_of(MIB), end));
            }
            (0, _) => at = None,
            (2, Some((_, end))) => {
                at = at.map(|(free, window)| (free.max(end.next_multiple_of(MIB)), window));
            }
            _ => {}
        }
    }
    None
}

/// Moves the target's BAR and the window above it, with decode off, as Linux does.
pub(super) fn moves(stage: &mut Stage, rounds: u32) -> io::Result<()> {
    let config = Config::of(&stage.target)?;
    let ports = Ports::open(&stage.target)?;
    let engine = Edu::open(&stage.peer)?;
    let mut last = stage.home;
    for round in 0..rounds {
        engine.keep_storing(liveness(last))?;
        let to = ports.free + u64::from(round) % PLACES * MIB;
        config.decode(false)?;
        ports.own.set_window(to, to + MIB)?;
        config.move_bar0(to)?;
        config.decode(true)?;
        if round % LOOK_EVERY == 0 {
            stage.check(&engine, to)?;
            if stage.check(&engine, last).is_ok() {
                return Err(io::Error::other(format!("{last:#x} is still reached")));
            }
        }
        last = to;
    }
    engine.finish()?;
    config.decode(false)?;
    ports.close()?;
    config.move_bar0(stage.home)?;
    config.decode(true)?;
    stage.check_home()
}

/// Swaps the addresses of target and peer, and the windows above them.
pub(super) fn swap(stage: &mut Stage, rounds: u32) -> io::Result<()> {
    let configs = [Config::of(&stage.target)?, Config::of(&stage.peer)?];
    let port = |function: &Function| -> io::Result<Config> {
        let bridges = function.bridges()?;
        Config::of(bridges.first().ok_or(io::ErrorKind::NotFound)?)
    };
    let ports = [port(&stage.target)?, port(&stage.peer)?];
    let homes = [stage.home, stage.engine.bar0];
    stage.engine.finish()?;
    for round in 0..rounds {
        let places = match round % 2 {
            0 => [homes[1], homes[0]],
            _ => homes,
        };
        for config in &configs {
            config.decode(false)?;
        }
        for ((config, port), place) in configs.iter().zip(&ports).zip(places) {
            port.set_window(place, place + MIB)?;
            config.move_bar0(place)?;
        }
        for config in &configs {
            config.decode(true)?;
        }
        // The device that is at this address now.
        let one = Edu::at(homes[0])?;
        let two = Edu::at(homes[1])?;
        stage.check(&one, homes[1])?;
        stage.check(&two, homes[0])?;
    }
    stage.check_home()
}

/// Moves the target to the peer's address, with decode on. The peer keeps its address.
pub(super) fn collide(stage: &mut Stage, rounds: u32) -> io::Result<()> {
    let config = Config::of(&stage.target)?;
    let bridges = stage.target.bridges()?;
    let port = Config::of(bridges.first().ok_or(io::ErrorKind::NotFound)?)?;
    let (start, end) = port.window()?;
    let theirs = stage.engine.bar0;
    let (first, last) = (start.min(theirs), end.max(theirs + MIB));
    port.set_window(first, last)?;
    for _ in 0..rounds {
        stage.engine.keep_storing(liveness(stage.home))?;
        config.move_bar0(theirs)?;
        stage.engine.finish()?;
        let word = stage.next_word();
        stage.engine.set_liveness(word)?;
        if stage.engine.liveness()? != !word {
            return Err(io::Error::other("the peer lost its place"));
        }
        config.move_bar0(stage.home)?;
    }
    port.set_window(start, end)?;
    stage.check_home()
}

/// The port above holds its bus in reset. The kernel saves and restores the functions below.
pub(super) fn bus_reset(stage: &mut Stage, rounds: u32) -> io::Result<()> {
    stage.target.write("reset_method", "bus")?;
    for _ in 0..rounds {
        stage.engine.keep_storing(liveness(stage.home))?;
        stage.target.write("reset", "1")?;
        stage.engine.finish()?;
        stage.check_home()?;
    }
    Ok(())
}

/// A drive without a driver, whose registers are the target.
struct Drive {
    function: Function,
    bar0: u64,
    registers: Mapping,
}

/// Admin queue attributes (NVM Express r1.4 §3.1.7), a register that keeps its value while the controller is off.
const ADMIN_QUEUE: usize = 0x24;

impl Drive {
    fn take() -> io::Result<Self> {
        let mut found = Function::find(Path::new("/sys"), 0x1b36, 0x0010)?.into_iter();
        let function = found.next().ok_or(io::ErrorKind::NotFound)?;
        // Fails if the driver was unbound before.
        drop(function.write("driver/unbind", &function.bdf));
        function.enable()?;
        let (bar0, _, file) = function.bar0()?;
        Ok(Self {
            function,
            bar0,
            registers: Mapping::of_file(&file, PAGE)?,
        })
    }

    /// The peer writes a register of the drive.
    fn check(&self, stage: &mut Stage) -> io::Result<()> {
        let word = stage.next_word() & 0x0fff_0fff;
        let engine = Edu::open(&stage.peer)?;
        stage.store(&engine, self.bar0 + ADMIN_QUEUE as u64, word)?;
        let found = self.registers.read_u32(ADMIN_QUEUE)?;
        if found == word {
            return Ok(());
        }
        let text = format!("the drive's register has {found:#x}, not {word:#x}, after DMA");
        Err(io::Error::other(text))
    }
}

pub(super) fn function_reset(stage: &mut Stage, rounds: u32) -> io::Result<()> {
    let drive = Drive::take()?;
    drive.check(stage)?;
    drive.function.write("reset_method", "flr")?;
    for _ in 0..rounds {
        stage.engine.keep_storing(drive.bar0 + ADMIN_QUEUE as u64)?;
        drive.function.write("reset", "1")?;
        stage.engine.finish()?;
        drive.check(stage)?;
    }
    Ok(())
}

pub(super) fn sleep(stage: &mut Stage, rounds: u32) -> io::Result<()> {
    /// How long a function may take from D3hot to D0 (PCI PM r1.2 §5.4.1).
    const WAKE: Duration = Duration::from_millis(10);
    let drive = Drive::take()?;
    drive.check(stage)?;
    let config = Config::of(&drive.function)?;
    let bars = config.bars()?;
    for _ in 0..rounds {
        stage.engine.keep_storing(drive.bar0 + ADMIN_QUEUE as u64)?;
        config.set_power(3)?;
        stage.engine.keep_storing(drive.bar0 + ADMIN_QUEUE as u64)?;
        config.set_power(0)?;
        thread::sleep(WAKE);
        config.set_bars(&bars)?;
        config.decode(true)?;
        stage.engine.finish()?;
        drive.check(stage)?;
    }
    Ok(())
}

/// The peer writes to plain memory of a device. The result is also checked from outside the host.
pub(super) fn memory_device(stage: &mut Stage, _rounds: u32) -> io::Result<()> {
    const WORD: u32 = 0x5eed_cafe;
    let mut found = Function::find(Path::new("/sys"), 0x1af4, 0x1110)?.into_iter();
    let function = found.next().ok_or(io::ErrorKind::NotFound)?;
    function.enable()?;
    let (bar2, _, file) = function.bar(2)?;
    let memory = Mapping::of_file(&file, PAGE)?;
    memory.write_u32(0, 0)?;
    let engine = Edu::open(&stage.peer)?;
    stage.store(&engine, bar2, WORD)?;
    if memory.read_u32(0)? == WORD {
        return Ok(());
    }
    Err(io::Error::other("nothing arrived in the device's memory"))
}

#[cfg(test)]
mod tests {
    use super::gap;

    const IOMEM: &str = "\
00000000-1fffffff : System RAM
c0000000-c07fffff : PCI Bus 0000:00
  c0000000-c00fffff : PCI Bus 0000:01
fe000000-febfffff : PCI Bus 0000:00
  fe000000-fe3fffff : PCI Bus 0000:01
    fe000000-fe0fffff : 0000:02:00.0
  fe400000-fe400fff : 0000:00:02.0
100000000-1ffffffff : PCI Bus 0000:00
";

    #[test]
    fn gaps_are_between_windows_or_behind_the_last() {
        assert_eq!(gap(IOMEM, 1 << 20), Some(0xc010_0000));
        assert_eq!(gap(IOMEM, 7 << 20), Some(0xc010_0000));
        assert_eq!(
            gap(&IOMEM.replace("c07f", "c00f"), 1 << 20),
            Some(0xfe50_0000)
        );
        assert_eq!(gap(IOMEM, 8 << 20), None);
    }
}
