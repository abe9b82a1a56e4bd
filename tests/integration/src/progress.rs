//! Shows the progress of operations that take time.

use std::io::{IsTerminal, Write, stderr};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Interval at which a line is repeated where it cannot be overwritten: in a log file.
const LOG_INTERVAL: Duration = Duration::from_secs(5);

/// Interval at which a running operation shows its progress.
const TICK: Duration = Duration::from_millis(500);

/// Progress on standard error. On a terminal the current line is overwritten as the operation advances.
pub struct Progress {
    terminal: bool,
    line: Mutex<Line>,
}

#[derive(Default)]
struct Line {
    /// The terminal shows a line that the next one replaces.
    open: bool,
    what: String,
    shown: Option<Instant>,
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}

impl Progress {
    /// Progress on standard error.
    #[must_use]
    pub fn new() -> Self {
        Self {
            terminal: stderr().is_terminal(),
            line: Mutex::default(),
        }
    }

    /// Shows the start of a step or a fact, always on its own line.
    pub fn step(&self, text: &str) {
        let mut line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        if line.open {
            eprint!("\r\x1b[K");
        }
        *line = Line::default();
        eprintln!("{text}");
    }

    /// Shows how much of an operation is done, in any unit. Callers may call it as often as the amount changes.
    pub fn amount(&self, what: &str, done: u64, total: u64) {
        let percent = done.saturating_mul(100).checked_div(total).unwrap_or(100);
        self.moving(what, &format!("{}%", percent.min(100)));
    }

    /// Shows that an operation without a known end is running.
    pub fn alive(&self, what: &str, since: Instant) {
        self.moving(what, &format!("{} s", since.elapsed().as_secs()));
    }

    /// Shows that an operation has processed `done` items of an unknown number.
    pub fn count(&self, what: &str, done: u32, since: Instant) {
        let seconds = since.elapsed().as_secs();
        self.moving(what, &format!("{done}, {seconds} s"));
    }

    /// Shows that `work` is running while it runs.
    pub fn during<T>(&self, what: &str, work: impl FnOnce() -> T) -> T {
        let started = Instant::now();
        let (done, ended) = mpsc::channel::<()>();
        thread::scope(|scope| {
            scope.spawn(move || {
                while let Err(RecvTimeoutError::Timeout) = ended.recv_timeout(TICK) {
                    self.alive(what, started);
                }
            });
            let result = work();
            drop(done);
            result
        })
    }

    /// Removes the current line, so that other output can take its place.
    pub fn clear(&self) {
        let mut line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        if line.open {
            eprint!("\r\x1b[K");
        }
        *line = Line::default();
    }

    fn moving(&self, what: &str, state: &str) {
        let mut line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = line.what != what;
        if self.terminal {
            eprint!("\r{what}: {state}\x1b[K");
            // A terminal that cannot be written to shows no progress; the operation continues.
            drop(stderr().flush());
            line.open = true;
            line.what = what.to_owned();
        } else if fresh || line.shown.is_none_or(|at| at.elapsed() >= LOG_INTERVAL) {
            eprintln!("{what}: {state}");
            line.what = what.to_owned();
            line.shown = Some(Instant::now());
        }
    }
}
