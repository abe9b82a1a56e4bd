//! What a person sees while something takes its time.

use std::io::{IsTerminal, Write, stderr};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How often a line is repeated where it cannot be overwritten: in a log file.
const LOG_INTERVAL: Duration = Duration::from_secs(5);

/// How often something that goes on shows it.
const TICK: Duration = Duration::from_millis(500);

/// Progress on standard error; on a terminal the current line is overwritten as it advances.
pub struct Progress {
    terminal: bool,
    line: Mutex<Line>,
}

#[derive(Default)]
struct Line {
    /// A line is on the terminal that the next one replaces.
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

    /// A step begins or a fact is known: always shown, on a line of its own.
    pub fn step(&self, text: &str) {
        let mut line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        if line.open {
            eprint!("\r\x1b[K");
        }
        *line = Line::default();
        eprintln!("{text}");
    }

    /// How far something has come, in whatever unit; call it as often as there is news.
    pub fn amount(&self, what: &str, done: u64, total: u64) {
        let percent = done.saturating_mul(100).checked_div(total).unwrap_or(100);
        self.moving(what, &format!("{}%", percent.min(100)));
    }

    /// Something goes on that has no known end.
    pub fn alive(&self, what: &str, since: Instant) {
        self.moving(what, &format!("{} s", since.elapsed().as_secs()));
    }

    /// Something goes on that has come through so many pieces of an unknown number.
    pub fn count(&self, what: &str, done: u32, since: Instant) {
        let seconds = since.elapsed().as_secs();
        self.moving(what, &format!("{done}, {seconds} s"));
    }

    /// Shows that something goes on while it does.
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

    /// Takes the moving line away, so that something else can be printed in its place.
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
            // A terminal that cannot be written to shows no progress; the work goes on.
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
