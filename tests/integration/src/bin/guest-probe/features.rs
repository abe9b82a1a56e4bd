//! Features of the lab's endpoints besides DMA: BARs and ROM, power states, resets and interrupt vectors.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use lab::report::Finding;

use crate::config::Config;
use crate::endpoint::{DEVICE, REGISTERS_SIZE, VENDOR};
use crate::mapping::Mapping;
use crate::pci::Function;

type Print<'a> = dyn FnMut(&Finding) -> io::Result<()> + 'a;

/// Registers in BAR 0 (`resources/qemu/hw/pci/lab_endpoint.c`).
const IDENTITY: usize = 0x00;
const SOURCE: usize = 0x08;
const INTERRUPT: usize = 0x38;

/// How long a function may take from D3hot to D0 (PCI PM r1.2 §5.4.1).
const WAKE: Duration = Duration::from_millis(10);

/// Timeout of an interrupt, and a wait long enough to show that none comes.
const FIRE: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// MSI-X (PCIe r6.0 §7.7.2).
const MSIX: u8 = 0x11;
const MSIX_CONTROL: u64 = 2;
const MSIX_ENABLE: u16 = 1 << 15;
const MSIX_SIZE: u16 = 0x7ff;
const ENTRY: usize = 16;

/// Prints the features of each named endpoint, or of all.
pub(crate) fn run(names: &[&str], print: &mut Print<'_>) -> io::Result<bool> {
    let functions = find(names)?;
    for function in &functions {
        function.enable()?;
        let mut tell = |name: &str, value: String| {
            print(&Finding::Feature {
                device: function.bdf.clone(),
                name: name.to_owned(),
                value,
            })
        };
        tell("memory", memory(function)?)?;
        tell("io", io_bar(function)?)?;
        tell("rom", rom(function)?)?;
        tell("d3hot", d3hot(function)?)?;
        tell("flr", flr(function)?)?;
    }
    Ok(!functions.is_empty())
}

/// Fires each vector of each named endpoint, or of all, in a guest.
pub(crate) fn vectors(names: &[&str], print: &mut Print<'_>) -> io::Result<bool> {
    let functions = find(names)?;
    for function in &functions {
        function.enable()?;
        let (fired, size) = fire(function)?;
        print(&Finding::Feature {
            device: function.bdf.clone(),
            name: "vectors".to_owned(),
            value: format!("{fired} of {size} fired"),
        })?;
    }
    Ok(!functions.is_empty())
}

fn find(names: &[&str]) -> io::Result<Vec<Function>> {
    let mut functions = Function::find(Path::new("/sys"), VENDOR, DEVICE)?;
    functions.retain(|function| names.is_empty() || names.contains(&&*function.bdf));
    Ok(functions)
}

fn registers(function: &Function) -> io::Result<Mapping> {
    let (_, _, file) = function.bar0()?;
    Mapping::of_file(&file, REGISTERS_SIZE)
}

/// Size of BAR 2, if its first word, its last word and one word of each GiB keep the values written to them.
fn memory(function: &Function) -> io::Result<String> {
    let (_, bytes, file) = function.bar(2)?;
    let size = usize::try_from(bytes).map_err(io::Error::other)?;
    let memory = Mapping::of_file(&file, size)?;
    let last = size.saturating_sub(8);
    let places: Vec<usize> = (0..size).step_by(1 << 30).chain([last]).collect();
    let word = |place: usize| 0xb162_0000_0000_0000 | u64::try_from(place).unwrap_or_default();
    for place in &places {
        memory.write_u64(*place, word(*place))?;
    }
    for place in &places {
        let found = memory.read_u64(*place)?;
        if found != word(*place) {
            return Ok(format!("{found:#x} at {place:#x} of {bytes:#x}"));
        }
    }
    Ok(format!("{} MiB", bytes >> 20))
}

/// Writes to BAR 1 in I/O space and returns the value read back.
fn io_bar(function: &Function) -> io::Result<String> {
    const WORD: u32 = 0x10ba_1234;
    let Ok((_, bytes, file)) = function.bar(1) else {
        return Ok("none".to_owned());
    };
    file.write_all_at(&WORD.to_le_bytes(), 4)?;
    let mut found = [0; 4];
    file.read_exact_at(&mut found, 4)?;
    let found = u32::from_le_bytes(found);
    Ok(format!("{bytes} bytes, wrote {WORD:#x}, read {found:#x}"))
}

/// Size of the expansion ROM, and the contents of its header (PCI firmware specification r3.3 §5.1).
fn rom(function: &Function) -> io::Result<String> {
    let path = function.path().join("rom");
    let Ok(metadata) = fs::metadata(&path) else {
        return Ok("none".to_owned());
    };
    function.write("rom", "1")?;
    let mut header = [0; 0x24];
    let read = File::open(path)?.read_exact_at(&mut header, 0);
    function.write("rom", "0")?;
    read?;
    let word = |at: usize| {
        header
            .get(at..at + 2)
            .map_or(0, |b| b[0] as u16 | (b[1] as u16) << 8)
    };
    Ok(format!(
        "{} bytes, {:04x}, for {:04x}:{:04x}",
        metadata.len(),
        word(0),
        word(0x20),
        word(0x22)
    ))
}

/// Value of its identity register in D3hot and afterwards.
fn d3hot(function: &Function) -> io::Result<String> {
    let (config, registers) = (Config::of(function)?, registers(function)?);
    let bars = config.bars()?;
    config.set_power(3)?;
    thread::sleep(WAKE);
    let asleep = registers.read_u64(IDENTITY)?;
    config.set_power(0)?;
    thread::sleep(WAKE);
    config.set_bars(&bars)?;
    config.decode(true)?;
    let awake = registers.read_u64(IDENTITY)?;
    // A read that no device answers returns zeros in the emulator, and ones elsewhere.
    let asleep = match asleep {
        0 | u64::MAX => "nothing".to_owned(),
        word => format!("{word:#x}"),
    };
    Ok(format!("{asleep} asleep, {awake:#x} awake"))
}

/// Value of a register before and after a function level reset.
fn flr(function: &Function) -> io::Result<String> {
    let registers = registers(function)?;
    registers.write_u64(SOURCE, 0xf1e)?;
    let before = registers.read_u64(SOURCE)?;
    function.write("reset_method", "flr")?;
    function.write("reset", "1")?;
    let after = registers.read_u64(SOURCE)?;
    Ok(format!("{before:#x} before, {after:#x} after"))
}

/// Fires every vector once, one after the other, as the interrupt that the kernel counts as a rescheduling one, so that
/// no driver is involved. Returns how many interrupts arrived, and of how many.
fn fire(function: &Function) -> io::Result<(usize, usize)> {
    /// Physical destination 0, fixed (Intel SDM volume 3 §12.11.1).
    const ADDRESS: u32 = 0xfee0_0000;
    /// linux 7.2 arch/x86/include/asm/irq_vectors.h: `RESCHEDULE_VECTOR`.
    const DATA: u32 = 0xfd;
    let config = function.config()?;
    let at = Config::of(function)?.capability(MSIX)? + MSIX_CONTROL;
    let mut control = [0; 2];
    config.read_exact_at(&mut control, at)?;
    let control = u16::from_le_bytes(control);
    let size = usize::from(control & MSIX_SIZE) + 1;
    let (_, bytes, file) = function.bar(4)?;
    let table = Mapping::of_file(&file, usize::try_from(bytes).map_err(io::Error::other)?)?;
    for entry in (0..size).map(|vector| vector * ENTRY) {
        for (offset, value) in [(0, ADDRESS), (4, 0), (8, DATA), (12, 0)] {
            table.write_u32(entry + offset, value)?;
        }
    }
    config.write_all_at(&(control | MSIX_ENABLE).to_le_bytes(), at)?;
    let registers = registers(function)?;
    let mut fired = 0;
    for vector in 0..size {
        let before = rescheduled()?;
        registers.write_u64(INTERRUPT, u64::try_from(vector).unwrap_or_default())?;
        let started = Instant::now();
        while rescheduled()? == before && started.elapsed() < FIRE {
            thread::sleep(LOOK_EVERY);
        }
        fired += usize::from(rescheduled()? == before + 1);
    }
    config.write_all_at(&control.to_le_bytes(), at)?;
    Ok((fired, size))
}

/// Number of rescheduling interrupts of all processors. A single processor receives none from others.
fn rescheduled() -> io::Result<u64> {
    let text = fs::read_to_string("/proc/interrupts")?;
    let line = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("RES:"));
    let line = line.ok_or_else(|| io::Error::other("/proc/interrupts has no line RES"))?;
    Ok(line
        .split_ascii_whitespace()
        .map_while(|word| word.parse::<u64>().ok())
        .sum())
}
