//! Log to standard error, one line per message.
//!
//! ```text
//! any thread ──line──▶ queue (the last 1024) ──▶ thread "log" ──write──▶ standard error
//! ```
//! Before that thread starts, and after it has ended, the logging thread writes its lines itself. In between no
//! thread waits for the reader of standard error, because messages are logged while devices are locked. Lines that do
//! not fit into the queue are dropped and counted.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use log::{LevelFilter, Log, Metadata, Record, SetLoggerError};

use crate::lock::lock;

/// Most lines in the queue.
const MAX_LINES: usize = 1024;
/// How long the end of the process waits until the last lines are written.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Which thread writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// The thread that logs.
    Direct,
    /// The log thread.
    Queued,
    /// The log thread, until the queue is empty.
    Ending,
}

struct State {
    mode: Mode,
    lines: VecDeque<String>,
    dropped: u64,
}

/// Lines that wait to be written.
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

    /// Queues a line for the log thread, or returns it if that thread does not run.
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

    /// The log thread: writes until the end. The queue is not locked during a write.
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
            // An error of standard error cannot be reported.
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

    /// Waits until the log thread has written all lines and ended, at most `timeout`.
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
            // An error of standard error cannot be reported.
            let _ = io::stderr().write_all(line.as_bytes());
        }
    }

    fn flush(&self) {}
}

/// The log of this process.
pub(crate) struct Logger(Arc<Queue>);

/// Makes standard error the log of this process. Times are seconds since this call.
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
    /// Starts a thread that writes the log until the returned value is dropped. The thread first calls `first`, which
    /// may drop its rights: it only needs to write.
    pub(crate) fn in_background(
        self,
        first: impl FnOnce() -> io::Result<()> + Send + 'static,
    ) -> io::Result<Background> {
        let queue = Arc::clone(&self.0);
        // Before the thread starts: it ends at once in mode `Direct`.
        lock(&self.0.state).mode = Mode::Queued;
        let started = vmm_api::start_thread("log", first, move || queue.drain(io::stderr()));
        if started.is_err() {
            lock(&self.0.state).mode = Mode::Direct;
        }
        started.map(|_| Background(self.0))
    }
}

/// The log thread. Dropping this writes the last lines, within two seconds.
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

    /// Writes a line for every message on `go`.
    struct SlowSink {
        go: Receiver<()>,
        written: Sender<String>,
    }

    impl Write for SlowSink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            // Without a sender it does not wait.
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
        // The sink is blocked, and `end` returns all the same.
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
