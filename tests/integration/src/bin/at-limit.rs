//! Runs a program and kills it as soon as the journal of its transaction exceeds a size: `at-limit BYTES PROGRAM…`. It
//! ends with the program's exit status. Tests use it to stop a program after any record of a journal.
//!
//! The write wakes this process. It is a real-time process, so on a machine with one processor it runs before the
//! program continues.

#![allow(unsafe_code, reason = "the scheduler has no safe interface")]

use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitCode};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, Reader, WatchFlags};
use rustix::process::{Signal, getpid, kill_process};

/// Directory of p2pctl's journals: the journal of the running transaction, and those of all transactions. A journal is
/// one file with two names.
const STATE: &str = "/var/lib/p2pctl";
const JOURNAL: &str = "/var/lib/p2pctl/running.jsonl";

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let limit = words.next().and_then(|word| word.parse::<u64>().ok());
    let (Some(limit), Some(program)) = (limit, words.next()) else {
        eprintln!("at-limit: want BYTES PROGRAM…");
        return ExitCode::FAILURE;
    };
    let mut command = Command::new(&program);
    match run(command.args(words), limit) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("at-limit: {program}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: &mut Command, limit: u64) -> io::Result<ExitCode> {
    let done = Path::new(STATE).join("done");
    fs::create_dir_all(&done)?;
    let watch = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    for dir in [Path::new(STATE), &done] {
        inotify::add_watch(&watch, dir, WatchFlags::MODIFY | WatchFlags::CREATE)?;
    }
    let mut child = command.spawn()?;
    go_first()?;
    let pause = Timespec {
        tv_sec: 0,
        tv_nsec: 20_000_000,
    };
    loop {
        poll(&mut [PollFd::new(&watch, PollFlags::IN)], Some(&pause))?;
        let mut events = [MaybeUninit::uninit(); 4096];
        let mut events = Reader::new(&watch, &mut events);
        while events.next().is_ok() {}
        let longer = fs::metadata(JOURNAL).is_ok_and(|meta| meta.len() > limit);
        if longer {
            return die(&mut child);
        }
        if let Some(status) = child.try_wait()? {
            let code = status.code().and_then(|code| u8::try_from(code).ok());
            return match (code, status.signal()) {
                (Some(code), _) => Ok(ExitCode::from(code)),
                _ => Err(io::Error::other(status.to_string())),
            };
        }
    }
}

fn die(child: &mut Child) -> io::Result<ExitCode> {
    child.kill()?;
    child.wait()?;
    kill_process(getpid(), Signal::KILL)?;
    Ok(ExitCode::FAILURE)
}

/// Gives this process priority over all ordinary ones (sched(7)). The child was started before and does not inherit it.
fn go_first() -> io::Result<()> {
    let priority = libc::sched_param { sched_priority: 1 };
    // SAFETY: the structure lives as long as the call, which only reads it.
    match unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const priority) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
