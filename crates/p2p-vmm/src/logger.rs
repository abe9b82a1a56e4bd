//! Log to standard error, one line per message.
//!
//! ```text
//! any thread ──line──▶ queue (the last thousand) ──▶ thread "log" ──write──▶ standard error
//! ```
//! Before that thread is started, and after it has ended, lines are written by who logs. In between nobody waits for a
//! reader of standard error: messages are logged with devices locked. What the queue does not hold is dropped and counted.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use log::{LevelFilter, Log, Metadata, Record, SetLoggerError};

use crate::lock::lock;

/// How many lines wait for the thread at most.
const MAX_LINES: usize = 1024;
/// How long the end of the process waits for a reader of its last lines.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Who writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Who logs.
    Direct,
    /// The thread.
    Queued,
    /// The thread, for the last time.
    Ending,
}

struct State {
    mode: Mode,
    lines: VecDeque<String>,
    dropped: u64,
}

/// Lines on their way to standard error.
struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

impl Queue {
    fn new() -> Self {
        Self {
            state: Mutex::new(State {
                mode: Mode::Direct,
                lines: VecDeque::new(),
                dropped: 0,
            }),
            changed: Condvar::new(),
        }
    }

    /// Takes a line for the thread, or gives it back if there is none.
    fn put(&self, line: String) -> Option<String> {
        let mut state = lock(&self.state);
        if state.mode == Mode::Direct {
            return Some(line);
        }
        if state.lines.len() < MAX_LINES {
            state.lines.push_back(line);
        } else {
            state.dropped = state.dropped.saturating_add(1);
        }
        drop(state);
        self.changed.notify_all();
        None
    }

    /// The thread: writes until the end. Nothing is locked while it writes.
    fn drain(&self, mut sink: impl Write) {
        loop {
            let state = lock(&self.state);
            let mut state = self.wait_while(state, |state| {
                state.mode == Mode::Queued && state.lines.is_empty()
            });
            let lines = std::mem::take(&mut state.lines);
            let dropped = std::mem::take(&mut state.dropped);
            if lines.is_empty() && state.mode != Mode::Queued {
                state.mode = Mode::Direct;
                drop(state);
                self.changed.notify_all();
                return;
            }
            drop(state);
            // There is nowhere to report that standard error is gone.
            for line in lines {
                let _ = sink.write_all(line.as_bytes());
            }
            if dropped > 0 {
                let line = format!("p2p-vmm: {dropped} more messages were dropped\n");
                let _ = sink.write_all(line.as_bytes());
            }
        }
    }

    fn wait_while<'a>(
        &self,
        state: MutexGuard<'a, State>,
        condition: impl FnMut(&mut State) -> bool,
    ) -> MutexGuard<'a, State> {
        let waited = self.changed.wait_while(state, condition);
        waited.unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Ends the thread when it has written what it has, or leaves it alone after `patience`.
    fn end(&self, timeout: Duration) {
        let mut state = lock(&self.state);
        state.mode = Mode::Ending;
        self.changed.notify_all();
        let waited = self
            .changed
            .wait_timeout_while(state, timeout, |state| state.mode != Mode::Direct);
        drop(waited);
    }
}

struct StderrLogger {
    start: Instant,
    queue: Arc<Queue>,
}

impl Log for StderrLogger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let elapsed = self.start.elapsed().as_secs_f64();
        let level = record.level().as_str().to_ascii_lowercase();
        let line = format!("p2p-vmm {elapsed:9.3}s {level}: {}\n", record.args());
        if let Some(line) = self.queue.put(line) {
            // There is nowhere left to report that standard error is gone.
            let _ = io::stderr().write_all(line.as_bytes());
        }
    }

    fn flush(&self) {}
}

/// The log of this process.
pub(crate) struct Logger(Arc<Queue>);

/// Makes standard error the log of this process; times are seconds since this call.
pub(crate) fn init(level: LevelFilter) -> Result<Logger, SetLoggerError> {
    let queue = Arc::new(Queue::new());
    log::set_boxed_logger(Box::new(StderrLogger {
        start: Instant::now(),
        queue: Arc::clone(&queue),
    }))?;
    log::set_max_level(level);
    Ok(Logger(queue))
}

impl Logger {
    /// Lets a thread of its own write from now on, until what is returned is dropped. The thread begins with `first`, which
    /// may take rights away from it: to write is all that it needs.
    pub(crate) fn in_background(
        self,
        first: impl FnOnce() -> io::Result<()> + Send + 'static,
    ) -> io::Result<Background> {
        let queue = Arc::clone(&self.0);
        // Before the thread, which ends at once if nothing is queued.
        lock(&self.0.state).mode = Mode::Queued;
        let started = hotplug::start_thread("log", first, move || queue.drain(io::stderr()));
        if started.is_err() {
            lock(&self.0.state).mode = Mode::Direct;
        }
        started.map(|_| Background(self.0))
    }
}

/// The thread that writes the log. Dropping it writes the last lines, within two seconds.
pub(crate) struct Background(Arc<Queue>);

impl Drop for Background {
    fn drop(&mut self) {
        self.0.end(TIMEOUT);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    /// Takes what is written once it is told to.
    struct SlowSink {
        go: Receiver<()>,
        written: Sender<String>,
    }

    impl Write for SlowSink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            // Whoever is gone waits for nothing.
            let _ = self.go.recv();
            let text = String::from_utf8_lossy(bytes).into_owned();
            self.written.send(text).map_err(io::Error::other)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn logging_does_not_wait_for_the_writer_and_counts_dropped_lines() {
        let queue = Arc::new(Queue::new());
        assert_eq!(queue.put("x".into()), Some("x".into()));
        lock(&queue.state).mode = Mode::Queued;
        let (go, wait) = channel();
        let (written, lines) = channel();
        let sink = SlowSink { go: wait, written };
        let other = Arc::clone(&queue);
        let thread = std::thread::spawn(move || other.drain(sink));

        let started = Instant::now();
        for n in 0..100_000 {
            assert_eq!(queue.put(format!("line {n}\n")), None);
        }
        assert!(started.elapsed() < Duration::from_secs(30));
        assert!(lock(&queue.state).lines.len() <= MAX_LINES);
        // Nobody reads, and the end comes all the same.
        queue.end(Duration::from_millis(10));

        drop(go);
        thread.join().unwrap();
        let lines: Vec<String> = lines.try_iter().collect();
        assert_eq!(lines[0], "line 0\n");
        let dropped = lines.iter().filter_map(|line| {
            let line = line.strip_prefix("p2p-vmm: ")?;
            line.split(' ').next()?.parse::<usize>().ok()
        });
        let dropped: usize = dropped.sum();
        let whole = lines.iter().filter(|line| line.starts_with("line")).count();
        assert_eq!(whole + dropped, 100_000);
        assert!(dropped >= 100_000 - 3 * MAX_LINES);
        assert_eq!(queue.put("y".into()), Some("y".into()));
    }
}
