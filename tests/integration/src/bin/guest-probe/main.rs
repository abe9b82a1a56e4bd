//! Makes a guest's devices do DMA: QEMU's `edu` devices into guest memory, into each other and into memory devices, NVMe
//! drives into each other's controller memory buffer.
//!
//! ```text
//! guest-probe [COUNT]          one round; exit code 0 if every check went well and COUNT devices are there
//! guest-probe loop SECONDS     rounds until the time is over; exit code 0 if every check of every round did
//! guest-probe aim ADDRESS      each engine stores into the register of another that is at this bus address, and fetches
//!                              from it; what comes of it is not judged
//! guest-probe liveness [WORD]  that register of each engine, after a word was written into it if one is given
//! guest-probe p2pmem           each drive reads into and writes from the buffer of each other; exit code 0 if all arrived
//! guest-probe peers MODE       each endpoint of the lab writes into and reads from each other one; MODE is how its requests
//!                              are sent: plain, translated (by ATS), forged (untranslated, but marked as translated) or
//!                              spoofed=BDF (with that requester ID); exit code 0 if all arrived
//! guest-probe bulk MODE [BDF…] the first of them, or of the named ones, copies 1 MiB of its memory into that of the second
//! guest-probe features [BDF…]  what BARs, ROM, power states and resets of each of them do, which is told, not judged
//! guest-probe vectors [BDF…]   every interrupt vector of each of them fires once, in a guest with one processor
//! guest-probe send ADDRESS MODE   each of them writes to and reads from a bus address; what comes of it is not judged
//! guest-probe arrivals [BDF…]  how many requests reached each of them, or the named ones, since this was asked last
//! guest-probe acs PORT CONTROL FILE WORD COUNT   writes an ACS control register: when it was written, when it was put back,
//!                              and when a file had a word so often
//! guest-probe resume PID FILE WORD COUNT   the same after a process that was stopped goes on
//! guest-probe reach            each endpoint of the lab aims at each other function's BAR by its bus address, which a host
//!                              that has mapped nothing tells of its switches; what arrives is told, not judged
//! guest-probe upset ROUNDS     devices are moved, reset and put to sleep under their peer's DMA; exit code 0 if all
//!                              of it works after; by-bus-address leaves out what cannot where a switch of the host routes by it
//! guest-probe revoke ROUNDS    one is switched off, reset and put to sleep, as often; exit code 0 if its peer reaches it
//!                              after each
//! guest-probe eject            lets go of everything in its slots, whether it was asked or not
//! guest-probe hammer SECONDS   uses the registers of its slots as no kernel does
//! guest-probe watch PATH       says when a file comes and when it goes, until it is killed
//! guest-probe interrupts NAME… waits until interrupts of these names have fired; exit code 0 if all have
//! ```
//!
//! Each check is one line of JSON on standard output: [`Finding`].

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

/// A number in hexadecimal.
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
