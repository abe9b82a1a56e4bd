//! Measures how long other processes take to react to a change of an ACS control register, on the machine's clock.

use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use lab::report::Finding;
use rustix::process::{Pid, Signal, kill_process};

use crate::pci::Function;

type Print<'a> = dyn FnMut(&Finding) -> io::Result<()> + 'a;

/// Polling interval. A process that polls without pause takes processor time from those that it waits for.
const LOOK_EVERY: Duration = Duration::from_millis(2);
/// Timeout of each wait.
const PATIENCE: Duration = Duration::from_secs(300);

/// Offset of the extended capabilities (PCIe r6.0 §7.6.3), and the ACS capability (§7.7.11).
const FIRST: u64 = 0x100;
const ACS: u32 = 0x000d;
const CONTROL: u64 = 6;

/// Writes the ACS control of a port. Reports when it was written, when it had its previous value again, and when a file
/// contained a word `count` times.
pub(crate) fn run(
    port: &str,
    control: u16,
    file: &str,
    word: &str,
    count: usize,
    print: &mut Print<'_>,
) -> io::Result<bool> {
    let functions = Function::all(Path::new("/sys"))?;
    let function = functions.iter().find(|function| function.bdf == port);
    let config = function.ok_or(io::ErrorKind::NotFound)?.config()?;
    let at = control_register(&config)?;
    let read = || -> io::Result<[u8; 2]> {
        let mut found = [0; 2];
        config.read_exact_at(&mut found, at)?;
        Ok(found)
    };
    let good = read()?;
    config.write_all_at(&control.to_le_bytes(), at)?;
    tell("written", print)?;
    wait_for(|| Ok(read()? == good))?;
    tell("put back", print)?;
    told(file, word, count, print)
}

/// Continues a stopped process. Reports when, and when a file contained a word `count` times.
pub(crate) fn resume(
    pid: i32,
    file: &str,
    word: &str,
    count: usize,
    print: &mut Print<'_>,
) -> io::Result<bool> {
    let process = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
    tell("resumed", print)?;
    kill_process(process, Signal::CONT)?;
    told(file, word, count, print)
}

/// Reports when a file contains a word `count` times.
fn told(file: &str, word: &str, count: usize, print: &mut Print<'_>) -> io::Result<bool> {
    wait_for(|| Ok(fs::read_to_string(file)?.matches(word).count() >= count))?;
    tell("told", print)?;
    Ok(true)
}

/// Reports an event with the current time.
fn tell(what: &str, print: &mut Print<'_>) -> io::Result<()> {
    let text = fs::read_to_string("/proc/uptime")?;
    let seconds = text.split_ascii_whitespace().next().unwrap_or_default();
    // The uptime has two decimals: hundredths of a second.
    let hundredths = seconds.replace('.', "").parse::<u64>();
    print(&Finding::At {
        what: what.to_owned(),
        ms: hundredths.map_err(io::Error::other)?.saturating_mul(10),
    })
}

fn wait_for(mut is_so: impl FnMut() -> io::Result<bool>) -> io::Result<()> {
    let started = Instant::now();
    while !is_so()? {
        if started.elapsed() > PATIENCE {
            return Err(io::ErrorKind::TimedOut.into());
        }
        thread::sleep(LOOK_EVERY);
    }
    Ok(())
}

/// Offset of the ACS control register.
fn control_register(config: &fs::File) -> io::Result<u64> {
    let mut at = FIRST;
    for _ in 0..96 {
        let mut header = [0; 4];
        config.read_exact_at(&mut header, at)?;
        let header = u32::from_le_bytes(header);
        if header & 0xffff == ACS {
            return Ok(at + CONTROL);
        }
        at = u64::from(header >> 20);
        if at < FIRST {
            break;
        }
    }
    Err(io::Error::other("no ACS capability"))
}
