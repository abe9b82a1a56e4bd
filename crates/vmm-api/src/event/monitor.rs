//! Writes events to a file or descriptor, as cloud-hypervisor's `--event-monitor` does: pretty JSON and an empty line.

use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{EventLog, Found, Reader};
use crate::inherited_fd::InheritedFd;
use crate::options::{OptionError, Options};
use crate::thread;

/// Time that the end of the VMM waits for a reader of the last events.
const PATIENCE: Duration = Duration::from_secs(2);
/// Size of an atomic write to a pipe, in bytes.
const PIPE_BUF: usize = 4096;
/// Largest size of the file, in bytes. Then it is started anew, with the number of dropped events.
const MAX_FILE_BYTES: u64 = 16 << 20;
/// Interval at which a blocked writer checks whether the VMM has ended.
const POLL: Duration = Duration::from_millis(200);

/// `--event-monitor path=FILE|fd=NUMBER`
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MonitorTarget {
    /// A file, written from its beginning, and started anew at 16 MiB. A FIFO is possible.
    Path(PathBuf),
    /// An inherited descriptor.
    Fd(InheritedFd),
}

impl FromStr for MonitorTarget {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let options = Options::parse(text, &["path", "fd"])?;
        let fd = options.value::<InheritedFd>("fd", InheritedFd::WHAT)?;
        match (options.text("path"), fd) {
            (Some(path), None) => Ok(Self::Path(path.into())),
            (None, Some(fd)) => Ok(Self::Fd(fd)),
            (None, None) => Err(OptionError::Missing {
                key: "path".to_owned(),
            }),
            (Some(_), Some(fd)) => Err(OptionError::BadValue {
                key: "fd".to_owned(),
                value: fd.to_string(),
                expected: "possible beside path".to_owned(),
            }),
        }
    }
}

/// Error of the event monitor.
#[derive(Debug, thiserror::Error)]
pub enum MonitorError {
    /// The file cannot be created.
    #[error("cannot create {path} for events")]
    Create {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The descriptor is not open.
    #[error("cannot use descriptor {fd} for events")]
    Descriptor {
        /// The number of the descriptor.
        fd: InheritedFd,
        /// The cause.
        source: io::Error,
    },
    /// The writer thread cannot be started.
    #[error("cannot start the thread that writes events")]
    Thread(#[source] io::Error),
}

/// A thread that writes events. Dropping it writes the last events, within two seconds.
pub struct EventMonitor {
    log: EventLog,
    done: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl EventMonitor {
    /// Starts to write the events of `log` from now on. The thread first runs `first`, which may drop privileges: the
    /// thread only needs to write.
    ///
    /// # Errors
    /// The target cannot be opened, the thread cannot be started, or `first` failed.
    pub fn start(
        log: &EventLog,
        target: &MonitorTarget,
        first: impl FnOnce() -> io::Result<()> + Send + 'static,
    ) -> Result<Self, MonitorError> {
        Self::start_bounded(log, target, MAX_FILE_BYTES, first)
    }

    fn start_bounded(
        log: &EventLog,
        target: &MonitorTarget,
        max_bytes: u64,
        first: impl FnOnce() -> io::Result<()> + Send + 'static,
    ) -> Result<Self, MonitorError> {
        let file = open(target)?;
        let is_file = file.metadata().is_ok_and(|metadata| metadata.is_file());
        let done = Arc::new(AtomicBool::new(false));
        let writer = Writer {
            log: log.clone(),
            file,
            // Only a regular file has a size limit.
            max_bytes: is_file.then_some(max_bytes),
            bytes: 0,
            events: 0,
            done: Arc::clone(&done),
            last_call: None,
        };
        let reader = log.reader();
        let body = move || writer.run(reader);
        let thread = thread::start("events", first, body).map_err(MonitorError::Thread)?;
        Ok(Self {
            log: log.clone(),
            done,
            thread: Some(thread),
        })
    }
}

impl Drop for EventMonitor {
    fn drop(&mut self) {
        self.log.close();
        self.done.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the thread that writes events panicked");
        }
    }
}

fn open(target: &MonitorTarget) -> Result<File, MonitorError> {
    match target {
        MonitorTarget::Path(path) => File::create(path).map_err(|source| MonitorError::Create {
            path: path.clone(),
            source,
        }),
        MonitorTarget::Fd(fd) => fd
            .duplicate()
            .map(File::from)
            .map_err(|source| MonitorError::Descriptor { fd: *fd, source }),
    }
}

/// State of the thread.
struct Writer {
    log: EventLog,
    file: File,
    /// Size limit of the file; `None` for a pipe.
    max_bytes: Option<u64>,
    /// Current size of the file.
    bytes: u64,
    events: u64,
    done: Arc<AtomicBool>,
    /// When to give up after the VMM has ended.
    last_call: Option<Instant>,
}

impl Writer {
    fn run(mut self, mut reader: Reader) {
        loop {
            let record = match reader.wait(Duration::from_secs(3600)) {
                Found::Event(_, line) => line.record(),
                Found::Missed(count) => self.log.missed(count).record(),
                Found::Nothing => continue,
                Found::End => return,
            };
            let written = record
                .and_then(|record| serde_json::to_string_pretty(&record))
                .map_err(io::Error::from)
                .and_then(|text| self.write_event(&format!("{text}\n\n")));
            if let Err(error) = written {
                log::error!("cannot write an event; no more events are written: {error}");
                return;
            }
        }
    }

    /// Writes an event, from the file's beginning if the size limit is reached.
    fn write_event(&mut self, text: &str) -> io::Result<()> {
        let room = |bytes: u64| self.max_bytes.is_none_or(|max| bytes <= max);
        let length = text.len() as u64;
        if !room(self.bytes.saturating_add(length)) && self.events > 0 {
            let lost = self.log.missed(self.events).record();
            let lost = lost.and_then(|record| serde_json::to_string_pretty(&record));
            let lost = format!("{}\n\n", lost?);
            self.file.set_len(0)?;
            self.file.rewind()?;
            (self.bytes, self.events) = (0, 0);
            self.write(lost.as_bytes())?;
            self.bytes = lost.len() as u64;
        }
        self.write(text.as_bytes())?;
        self.bytes = self.bytes.saturating_add(length);
        self.events = self.events.saturating_add(1);
        Ok(())
    }

    /// Writes all of `bytes`, without a time limit while the VMM runs, also to a nonblocking descriptor.
    fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            // A pipe that poll() reports as writable takes this much without blocking (POSIX: PIPE_BUF).
            let some = bytes.get(..PIPE_BUF).unwrap_or(bytes);
            match self.ready().and_then(|()| self.file.write(some)) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock => {}
                    _ => return Err(error),
                },
            }
        }
        Ok(())
    }

    /// Waits until the file is writable.
    fn ready(&mut self) -> io::Result<()> {
        let timeout = Timespec::try_from(POLL).map_err(io::Error::other)?;
        loop {
            let mut fds = [PollFd::from_borrowed_fd(self.file.as_fd(), PollFlags::OUT)];
            if poll(&mut fds, Some(&timeout))? > 0 {
                return Ok(());
            }
            if self.done.load(Ordering::Acquire) {
                let now = Instant::now();
                let last_call = *self.last_call.get_or_insert(now + PATIENCE);
                if now >= last_call {
                    return Err(io::ErrorKind::TimedOut.into());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
