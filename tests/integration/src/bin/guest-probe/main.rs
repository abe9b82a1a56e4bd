//! Makes a guest's devices do DMA: QEMU's `edu` devices into guest memory, into each other and into memory devices, and
//! NVMe drives into each other's controller memory buffer.
//!
//! ```text
//! guest-probe [COUNT]          one round; exit code 0 if every check succeeded and there are COUNT devices
//! guest-probe loop SECONDS     rounds until the time is over; exit code 0 if every check of every round succeeded
//! guest-probe aim ADDRESS      each engine writes to the register of another engine at this bus address and reads it;
//!                              reports the results without a verdict
//! guest-probe liveness [WORD]  value of that register in each engine, after WORD is written to it, if given
//! guest-probe p2pmem           each drive reads and writes the buffer of each other drive; exit code 0 if all arrived
//! guest-probe peers MODE       each endpoint of the lab writes to and reads from each other endpoint; MODE is how its
//!                              requests are sent: plain, translated (by ATS), forged (untranslated, but marked as
//!                              translated) or spoofed=BDF (with that requester ID); exit code 0 if all data arrived
//! guest-probe bulk MODE [BDF…] the first endpoint, or the first named one, copies 1 MiB of its memory to the second
//! guest-probe features [BDF…]  tests BARs, ROM, power states and resets of each endpoint; reports without a verdict
//! guest-probe vectors [BDF…]   fires every interrupt vector of each endpoint once, in a guest with one processor
//! guest-probe send ADDRESS MODE   each endpoint writes to and reads from a bus address; reports without a verdict
//! guest-probe arrivals [BDF…]  number of requests that reached each endpoint, or the named ones, since the last call
//! guest-probe acs PORT CONTROL FILE WORD COUNT   writes an ACS control register; reports when it was written,
//!                              when it was restored, and when FILE contained WORD COUNT times
//! guest-probe resume PID FILE WORD COUNT   the same after a stopped process continues
//! guest-probe reach            each endpoint of the lab accesses a BAR of each other function by its bus address,
//!                              which shows the routes of the switches on a host without mappings; reports no verdict
//! guest-probe upset ROUNDS     devices are moved, reset and put to sleep during DMA of their peer; exit code 0 if all
//!                              DMA works afterwards; by-bus-address omits the steps that fail where a host switch
//!                              routes by bus address
//! guest-probe revoke ROUNDS    a device is switched off, reset and put to sleep repeatedly; exit code 0 if its peer
//!                              reaches it after each step
//! guest-probe eject            ejects everything in the guest's slots, whether requested or not
//! guest-probe hammer SECONDS   uses the slot registers in ways that no kernel does
//! guest-probe watch PATH       reports when a file appears and disappears, until it is killed
//! guest-probe interrupts NAME… waits until interrupts of these names have fired; exit code 0 if all have
//! ```
//!
//! Each check prints one line of JSON to standard output: [`Finding`].

mod aim;
mod config;
mod drift;
mod edu;
mod endpoint;
mod features;
mod interrupts;
mod mapping;
mod p2pmem;
mod pci;
mod ports;
mod reach;
mod round;
mod send;
mod slots;
mod target;
mod upset;
mod watch;

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use lab::report::Finding;

use crate::round::Round;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let (count, duration) = match words.as_slice() {
        [] => (None, Duration::ZERO),
        ["loop", seconds] => match seconds.parse() {
            Ok(seconds) => (None, Duration::from_secs(seconds)),
            Err(_) => return usage(),
        },
        ["aim", address] => match number(address) {
            Some(address) => return outcome(aim::run(address, &mut print)),
            None => return usage(),
        },
        ["liveness"] => return outcome(aim::liveness(None, &mut print)),
        ["liveness", word] => match number(word).map(u32::try_from) {
            Some(Ok(word)) => return outcome(aim::liveness(Some(word), &mut print)),
            _ => return usage(),
        },
        ["p2pmem"] => return outcome(p2pmem::run(&mut print)),
        ["peers", text] => match send::mode(text) {
            Some(mode) => return outcome(send::peers(mode, &mut print)),
            None => return usage(),
        },
        ["send", address, text] => match (number(address), send::mode(text)) {
            (Some(address), Some(mode)) => return outcome(send::send(address, mode, &mut print)),
            _ => return usage(),
        },
        ["bulk", text, names @ ..] => match send::mode(text) {
            Some(mode) => return outcome(send::bulk(mode, names, &mut print)),
            None => return usage(),
        },
        ["acs", port, control, file, word, count] => {
            match (number(control).map(u16::try_from), count.parse()) {
                (Some(Ok(control)), Ok(count)) => {
                    let run = drift::run(port, control, file, word, count, &mut print);
                    return outcome(run);
                }
                _ => return usage(),
            }
        }
        ["resume", pid, file, word, count] => match (pid.parse(), count.parse()) {
            (Ok(pid), Ok(count)) => {
                return outcome(drift::resume(pid, file, word, count, &mut print));
            }
            _ => return usage(),
        },
        ["features", names @ ..] => return outcome(features::run(names, &mut print)),
        ["vectors", names @ ..] => return outcome(features::vectors(names, &mut print)),
        ["arrivals", names @ ..] => return outcome(send::arrivals(names, &mut print)),
        ["reach"] => return outcome(reach::run(&mut print)),
        ["upset", rounds, rest @ ..] => match (rounds.parse(), rest) {
            (Ok(rounds), []) => return outcome(upset::run(rounds, false, &mut print)),
            (Ok(rounds), ["by-bus-address"]) => {
                return outcome(upset::run(rounds, true, &mut print));
            }
            _ => return usage(),
        },
        ["revoke", rounds] => match rounds.parse() {
            Ok(rounds) => return outcome(upset::revoke(rounds, &mut print)),
            Err(_) => return usage(),
        },
        ["eject"] => return outcome(slots::eject()),
        ["hammer", seconds] => match seconds.parse() {
            Ok(seconds) => return outcome(slots::hammer(Duration::from_secs(seconds))),
            Err(_) => return usage(),
        },
        ["watch", path] => return outcome(watch::run(Path::new(path))),
        ["interrupts", names @ ..] => return outcome(interrupts::run(names, &mut print)),
        [count] => match count.parse() {
            Ok(count) => (Some(count), Duration::ZERO),
            Err(_) => return usage(),
        },
        _ => return usage(),
    };
    let started = Instant::now();
    loop {
        let mut round = Round::default();
        let error = round.run(&mut print).err().map(|error| error.to_string());
        let good = error.is_none() && round.is_good(count);
        if print(&round.summary(error)).is_err() || !good {
            return ExitCode::FAILURE;
        }
        if started.elapsed() >= duration {
            return ExitCode::SUCCESS;
        }
    }
}

/// Parses a hexadecimal number.
fn number(text: &str) -> Option<u64> {
    u64::from_str_radix(text.strip_prefix("0x")?, 16).ok()
}

fn outcome(result: io::Result<bool>) -> ExitCode {
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("guest-probe: {error}");
            ExitCode::FAILURE
        }
    }
}

fn usage() -> ExitCode {
    eprintln!(
        "usage: guest-probe [COUNT | loop SECONDS | aim ADDRESS | liveness [WORD] | p2pmem | peers MODE | bulk MODE [BDF…] | features [BDF…] | vectors [BDF…] | send ADDRESS MODE | arrivals [BDF…] | acs PORT CONTROL FILE WORD COUNT | resume PID FILE WORD COUNT | reach | upset ROUNDS [by-bus-address] | revoke ROUNDS | eject | hammer SECONDS | watch PATH | interrupts NAME…]"
    );
    ExitCode::FAILURE
}

fn print(finding: &Finding) -> io::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, finding)?;
    out.write_all(b"\n")?;
    out.flush()
}
