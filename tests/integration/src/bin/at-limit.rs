//! Runs a program that is killed by a signal when it writes beyond a given length of a file: `at-limit BYTES PROGRAM…`.
//!
//! The kernel does that, in the middle of the write and nowhere else: a way to stop a program at every point of a journal.

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use rustix::process::{Resource, Rlimit, setrlimit};

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let limit = words.next().and_then(|word| word.parse::<u64>().ok());
    let (Some(limit), Some(program)) = (limit, words.next()) else {
        eprintln!("at-limit: want BYTES PROGRAM…");
        return ExitCode::FAILURE;
    };
    let limit = Rlimit {
        current: Some(limit),
        maximum: Some(limit),
    };
    if let Err(error) = setrlimit(Resource::Fsize, limit) {
        eprintln!("at-limit: cannot set the limit: {error}");
        return ExitCode::FAILURE;
    }
    let error = Command::new(&program).args(words).exec();
    eprintln!("at-limit: cannot run {program}: {error}");
    ExitCode::FAILURE
}
