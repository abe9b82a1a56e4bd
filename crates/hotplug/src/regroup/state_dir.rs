//! The directory of journals and other persistent state.
//!
//! ```text
//! lock            held by the process that changes the host
//! done/ID.jsonl   the journals of the last transactions
//! running.jsonl   the same file as that of the transaction that has not come to its end
//! reset.json      what a reset that is under way must put right in the end
//! held.json       the ports that are kept awake, and the devices that are kept from their VMs
//! ```
//!
//! The space for everything that a transaction writes is reserved at its start, so that a full disk cannot stop it.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use iommu_group::Sbdf;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::disk::{Disk, RealDisk};
use super::error::StateError;
use super::journal::Journal;
use super::record::Begin;
use super::vmm::VmAddress;

/// Number of journals of finished transactions that are kept.
const KEPT: usize = 256;

/// Upper bound of transaction numbers, exclusive.
const LAST_NUMBER: u64 = 1_000_000_000_000;

/// Time that a reader may hold the lock.
const READ_TIME: Duration = Duration::from_secs(1);

/// Interval of attempts to get a lock.
const RETRY: Duration = Duration::from_millis(5);

/// A directory that survives reboots, such as `/var/lib/p2pctl`.
#[derive(Debug, Clone)]
pub struct StateDir {
    path: PathBuf,
    disk: Arc<dyn Disk>,
}

/// Exclusive right to change the host.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

/// Contents of a state directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Whether a process is changing the host now.
    pub busy: bool,
    /// The unfinished transaction, if there is one.
    pub unfinished: Option<Unfinished>,
    /// The ports that are kept awake.
    pub held: Vec<HeldPort>,
    /// The finished transactions, the latest first.
    pub finished: Vec<Finished>,
}

/// A port that is kept awake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldPort {
    /// The port.
    pub port: Sbdf,
    /// The original value of its `power/control`.
    pub power: String,
}

/// An unfinished transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfinished {
    /// The ID; `None` if the transaction did not begin, or its journal cannot be read.
    pub id: Option<String>,
    /// Addresses of the virtual machines whose devices were unplugged.
    pub vms: BTreeMap<String, VmAddress>,
    /// Its journal.
    pub journal: PathBuf,
}

/// A finished transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    /// The ID.
    pub id: String,
    /// The ID as a number.
    number: u64,
    /// Its journal.
    pub journal: PathBuf,
}

/// Parses the ID of a transaction as a number.
fn number(id: &str) -> Option<u64> {
    let digits = id.len() >= 6 && id.bytes().all(|byte| byte.is_ascii_digit());
    let number = id.parse().ok().filter(|_| digits)?;
    (number < LAST_NUMBER).then_some(number)
}

impl StateDir {
    /// A state directory. It is created at the first write.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self::on(path, Arc::new(RealDisk))
    }

    /// A state directory on the given file system.
    pub fn on(path: impl Into<PathBuf>, disk: Arc<dyn Disk>) -> Self {
        let path = path.into();
        Self { path, disk }
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The journal of the unfinished transaction.
    pub(super) fn running(&self) -> PathBuf {
        self.path.join("running.jsonl")
    }

    /// The state to restore after a reset.
    pub(super) fn resetting(&self) -> PathBuf {
        self.path.join("reset.json")
    }

    fn done(&self) -> PathBuf {
        self.path.join("done")
    }

    /// Creates the directory and takes its lock. Waits for readers, which hold the lock briefly; fails if the lock is
    /// held longer.
    pub(super) fn lock(&self) -> Result<Lock, StateError> {
        let done = self.done();
        fs::create_dir_all(&done).map_err(StateError::io("create", &done))?;
        let path = self.path.join("lock");
        // An existing lock file can be opened on a read-only file system.
        let file = File::open(&path).or_else(|_| File::create(&path));
        let file = file.map_err(StateError::io("open", &path))?;
        lock_within(&file, &path, READ_TIME)?;
        Ok(Lock { _file: file })
    }

    fn change(
        &self,
        verb: &'static str,
        path: &Path,
        mut make: impl FnMut() -> io::Result<()>,
    ) -> Result<(), StateError> {
        let made = self.disk.change(verb, path, &mut make);
        made.map_err(StateError::io(verb, path))
    }

    fn remove(&self, path: &Path) -> Result<(), StateError> {
        self.change("remove", path, || fs::remove_file(path))
    }

    /// Syncs the directory of a file.
    fn sync(&self, path: &Path) -> Result<(), StateError> {
        let dir = path.parent().unwrap_or(Path::new("."));
        self.change("sync", dir, || File::open(dir)?.sync_all())
    }

    /// Removes a file and syncs its directory.
    pub(super) fn discard(&self, path: &Path) -> Result<(), StateError> {
        self.remove(path)?;
        self.sync(path)
    }

    /// Replaces the contents of a file atomically.
    pub(super) fn replace(&self, path: &Path, text: &[u8]) -> Result<(), StateError> {
        let new = self.replacement(path, text)?;
        self.change("replace", path, || fs::rename(&new, path))?;
        self.sync(path)
    }

    /// Writes the contents to a new file beside `path`, unless that file has them already.
    pub(super) fn replacement(&self, path: &Path, text: &[u8]) -> Result<PathBuf, StateError> {
        let new = path.with_extension("json.new");
        if !fs::read(&new).is_ok_and(|there| there == text) {
            self.change("write to", &new, || {
                let mut file = File::create(&new)?;
                file.write_all(text)?;
                file.sync_all()
            })?;
        }
        Ok(new)
    }

    /// Begins the journal of a transaction with an unused number. On success it is the running journal; on failure
    /// there is none.
    pub(super) fn begin(&self, mut begin: Begin) -> Result<Journal, StateError> {
        let (file, path) = self.create(&mut begin.id)?;
        let running = self.running();
        let journal = Journal::create(file, Arc::clone(&self.disk), &path, begin);
        let journal = journal.and_then(|journal| {
            self.sync(&path)?;
            self.change("create", &running, || fs::hard_link(&path, &running))?;
            self.sync(&running)?;
            Ok(journal)
        });
        if journal.is_err() {
            for path in [&running, &path] {
                drop(self.remove(path));
            }
        }
        journal
    }

    /// Creates a file for the journal of the next transaction and stores the number in `id`.
    fn create(&self, id: &mut String) -> Result<(File, PathBuf), StateError> {
        let mut number = self.finished()?.first().map_or(0, |last| last.number);
        loop {
            number = number.saturating_add(1);
            *id = format!("{number:06}");
            let path = self.done().join(format!("{id}.jsonl"));
            let mut file = None;
            let created = self.change("create", &path, || {
                file = Some(File::create_new(&path)?);
                Ok(())
            });
            match (created, file) {
                (Ok(()), Some(file)) => return Ok((file, path)),
                // The name is taken; try the next number.
                (Err(StateError::Io { source, .. }), None)
                    if source.kind() == io::ErrorKind::AlreadyExists && number < LAST_NUMBER => {}
                (Err(error), file) => {
                    if file.is_some() {
                        drop(self.remove(&path));
                    }
                    return Err(error);
                }
                (Ok(()), None) => {
                    let error = io::Error::other("it was not created");
                    return Err(StateError::io("create", &path)(error));
                }
            }
        }
    }

    /// Opens the journal of the unfinished transaction to continue it.
    pub(super) fn open(&self) -> Result<Option<Journal>, StateError> {
        Journal::open(&self.running(), Arc::clone(&self.disk))
    }

    /// Closes the journal of a finished transaction. The last [`KEPT`] journals are kept.
    pub(super) fn retire(&self, journal: &mut Journal) -> Result<(), StateError> {
        journal.trim();
        self.discard(&self.running())?;
        // The transaction is finished even if old journals cannot be removed.
        for old in self.finished().unwrap_or_default().iter().skip(KEPT) {
            drop(self.remove(&old.journal));
        }
        Ok(())
    }

    /// Renames an unreadable file and adds its new path to the error.
    pub(super) fn set_aside(&self, path: &Path, error: StateError) -> StateError {
        let StateError::Journal { line, reason, .. } = error else {
            return error;
        };
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(".damaged");
        let to = path.with_file_name(name);
        match self.change("move", path, || fs::rename(path, &to)) {
            Ok(()) => StateError::Journal {
                path: to,
                line,
                reason: format!("{reason}; the change that it records is unknown"),
            },
            Err(error) => error,
        }
    }

    fn finished(&self) -> Result<Vec<Finished>, StateError> {
        let dir = self.done();
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(StateError::io("list", &dir)(error)),
        };
        let mut finished = Vec::new();
        for entry in entries {
            let journal = entry.map_err(StateError::io("list", &dir))?.path();
            let name = journal.file_name().and_then(|name| name.to_str());
            let id = name.and_then(|name| name.strip_suffix(".jsonl"));
            // Ignore files of other programs.
            if let Some((id, number)) = id.and_then(|id| Some((id.to_owned(), number(id)?))) {
                finished.push(Finished {
                    id,
                    number,
                    journal,
                });
            }
        }
        finished.sort_by_key(|finished| Reverse(finished.number));
        Ok(finished)
    }

    /// How long virtual machines were without their devices in the latest transaction that unplugged some, in
    /// milliseconds.
    pub(super) fn last_away_ms(&self) -> Result<Option<u64>, StateError> {
        /// Number of transactions to search.
        const LAST: usize = 16;
        let finished = self.finished()?;
        let mut last = finished.iter().take(LAST);
        Ok(last.find_map(|finished| Journal::away_ms(&finished.journal)))
    }

    /// The unfinished transaction.
    pub fn unfinished(&self) -> Result<Option<Unfinished>, StateError> {
        let running = self.running();
        let begin = match Journal::read(&running, Arc::clone(&self.disk)) {
            Ok(journal) => journal.map(|journal| journal.begin().clone()),
            // It may have finished just now.
            Err(StateError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Ok(None);
            }
            // Recovery reports what is wrong with the journal.
            Err(StateError::Journal { .. } | StateError::Version { .. }) => None,
            Err(error) => return Err(error),
        };
        Ok(Some(Unfinished {
            id: begin.as_ref().map(|begin| begin.id.clone()),
            vms: begin.map(|begin| begin.vms).unwrap_or_default(),
            journal: running,
        }))
    }

    /// The contents of the directory. `boot` is the current boot ID.
    pub fn status(&self, boot: &str) -> Result<Status, StateError> {
        // While this holds the lock, no change begins or ends, so a change that has just ended is not reported as
        // interrupted.
        let (busy, lock) = self.read_lock()?;
        let unfinished = self.unfinished()?;
        drop(lock);
        let running = unfinished.as_ref().and_then(|it| it.id.as_ref());
        let mut finished = self.finished()?;
        finished.retain(|finished| running != Some(&finished.id));
        let held = self.held(boot)?.ports.into_iter();
        Ok(Status {
            busy,
            unfinished,
            held: held.map(|(port, power)| HeldPort { port, power }).collect(),
            finished,
        })
    }

    /// Whether another process is changing the host. If not, no change begins until the returned file is closed.
    fn read_lock(&self) -> Result<(bool, Option<File>), StateError> {
        let path = self.path.join("lock");
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((false, None)),
            Err(error) => return Err(StateError::io("open", &path)(error)),
        };
        match flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok((false, Some(file))),
            Err(Errno::WOULDBLOCK) => Ok((true, None)),
            Err(error) => Err(StateError::io("lock", &path)(error.into())),
        }
    }
}

/// Takes the lock of a file. Fails if it is held for longer than `patience`.
pub(super) fn lock_within(file: &File, path: &Path, patience: Duration) -> Result<(), StateError> {
    let started = Instant::now();
    loop {
        match flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(Errno::WOULDBLOCK) if started.elapsed() < patience => thread::sleep(RETRY),
            Err(Errno::WOULDBLOCK) => {
                let path = path.to_owned();
                return Err(StateError::Busy { path });
            }
            Err(error) => return Err(StateError::io("lock", path)(error.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_do_not_block_a_change_and_a_change_blocks_another() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::new(dir.path());
        drop(state.lock().unwrap());
        let (busy, lock) = state.read_lock().unwrap();
        assert!(!busy);
        let looking = thread::spawn(move || {
            thread::sleep(READ_TIME / 50);
            drop(lock);
        });
        let lock = state.lock().unwrap();
        looking.join().unwrap();
        assert!(matches!(state.lock(), Err(StateError::Busy { .. })));
        let status = state.status("this start").unwrap();
        assert!(status.busy && status.unfinished.is_none());
        drop(lock);
        assert!(!state.status("this start").unwrap().busy);
    }
}
