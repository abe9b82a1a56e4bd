//! Commands that were started and left running.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::process::{Process, Report};

/// Maximum number of commands left running at the same time.
const MAX_PROCESSES: usize = 64;

#[derive(Default)]
pub(crate) struct Table {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    last: u64,
    processes: BTreeMap<u64, Arc<Process>>,
}

impl Table {
    pub(crate) fn insert(&self, process: Process) -> io::Result<u64> {
        let mut inner = self.lock();
        if inner.processes.len() >= MAX_PROCESSES {
            process.signal(rustix::process::Signal::KILL)?;
            return Err(io::Error::other(format!(
                "{MAX_PROCESSES} commands run in the background already"
            )));
        }
        inner.last = inner.last.wrapping_add(1);
        let handle = inner.last;
        inner.processes.insert(handle, Arc::new(process));
        Ok(handle)
    }

    /// Returns a command's report. A command is removed once its end has been reported.
    pub(crate) fn poll(&self, handle: u64, wait: Duration) -> io::Result<Report> {
        let report = self.find(handle)?.poll(wait);
        if report.has_ended() {
            self.lock().processes.remove(&handle);
        }
        Ok(report)
    }

    pub(crate) fn signal(&self, handle: u64, signal: i32) -> io::Result<()> {
        let signal = rustix::process::Signal::from_named_raw(signal)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "no such signal"))?;
        self.find(handle)?.signal(signal)
    }

    fn find(&self, handle: u64) -> io::Result<Arc<Process>> {
        self.lock()
            .processes
            .get(&handle)
            .cloned()
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no such process"))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
