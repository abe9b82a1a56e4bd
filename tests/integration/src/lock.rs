//! Locks between processes. Each is a file; the kernel releases it when its holder ends.

use std::fs::{self, File, OpenOptions};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::progress::Progress;

/// Interval at which a taken lock is tried again.
const RETRY: Duration = Duration::from_millis(200);

/// A held lock.
#[derive(Debug)]
pub(crate) struct FileLock {
    _file: File,
}

impl FileLock {
    /// Takes the lock, unless it is held.
    pub(crate) fn try_take(path: &Path) -> Result<Option<Self>> {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)
                .with_context(|| format!("cannot create {}", parent.display()))?;
        }
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self { _file: file })),
            Err(Errno::WOULDBLOCK | Errno::INTR) => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot lock {}", path.display())),
        }
    }

    /// Waits for one of several locks, and reports the reason for the wait.
    pub(crate) fn wait_any(
        paths: &[impl AsRef<Path>],
        limit: Duration,
        why: &str,
        progress: &Progress,
    ) -> Result<Self> {
        let started = Instant::now();
        loop {
            for path in paths {
                if let Some(lock) = Self::try_take(path.as_ref())? {
                    return Ok(lock);
                }
            }
            let waited = started.elapsed();
            anyhow::ensure!(
                waited < limit,
                "{why}: still so after {} s",
                waited.as_secs()
            );
            if waited > Duration::from_secs(1) {
                progress.alive(why, started);
            }
            thread::sleep(RETRY);
        }
    }

    /// Waits for one lock.
    pub(crate) fn wait(
        path: &Path,
        limit: Duration,
        why: &str,
        progress: &Progress,
    ) -> Result<Self> {
        Self::wait_any(&[path], limit, why, progress)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_has_one_holder_and_is_free_again_after_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sub/lock");
        let held = FileLock::try_take(&path).unwrap();
        assert!(held.is_some());
        assert!(FileLock::try_take(&path).unwrap().is_none());
        drop(held);
        assert!(FileLock::try_take(&path).unwrap().is_some());
    }

    #[test]
    fn waiting_ends_and_says_what_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let _held = FileLock::try_take(&path).unwrap().unwrap();
        let limit = Duration::from_millis(1);
        let error =
            FileLock::wait(&path, limit, "the slot is taken", &Progress::new()).unwrap_err();
        assert!(error.to_string().contains("the slot is taken"));
    }

    #[test]
    fn of_several_locks_the_free_one_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let paths = [dir.path().join("0"), dir.path().join("1")];
        let _held = FileLock::try_take(&paths[0]).unwrap().unwrap();
        let _other =
            FileLock::wait_any(&paths, Duration::from_secs(1), "busy", &Progress::new()).unwrap();
        assert!(FileLock::try_take(&paths[1]).unwrap().is_none());
    }
}
