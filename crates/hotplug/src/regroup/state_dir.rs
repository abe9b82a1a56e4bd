//! Where transactions leave their journals.
//!
//! ```text
//! lock            held by the process that changes the host
//! done/ID.jsonl   the journals of the last transactions
//! running.jsonl   the same file as that of the transaction that has not come to its end
//! reset.json      what a reset that is under way must put right in the end
//! held.json       the ports that are kept awake, and the devices that are kept from their VMs
//! ```
//!
//! What a transaction writes until it is over has its space reserved: a full disk does not keep it from its end.

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

/// How many journals of transactions that are over are kept.
const KEPT: usize = 256;

/// The number that no transaction reaches.
const LAST_NUMBER: u64 = 1_000_000_000_000;

/// How long somebody who looks may have the lock …
const LOOK: Duration = Duration::from_secs(1);

/// … and how often to see whether that is over.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// A directory that survives reboots, such as `/var/lib/p2pctl`.
#[derive(Debug, Clone)]
pub struct StateDir {
    path: PathBuf,
    disk: Arc<dyn Disk>,
}

/// Whoever has this is the only one who changes the host.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

/// What there is to know of a state directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Whether a process is changing the host now.
    pub busy: bool,
    /// The transaction that has not come to its end.
    pub unfinished: Option<Unfinished>,
    /// The ports that are kept awake.
    pub held: Vec<HeldPort>,
    /// The transactions that are over, the last one first.
    pub finished: Vec<Finished>,
}

/// A port that is kept awake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldPort {
    /// The port.
    pub port: Sbdf,
    /// What its `power/control` was.
    pub power: String,
}

/// A transaction that has not come to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfinished {
    /// Its name; `None` if it ended before it began, or nobody can read it.
    pub id: Option<String>,
    /// How the virtual machines are reached that devices were taken from.
    pub vms: BTreeMap<String, VmAddress>,
    /// Its journal.
    pub journal: PathBuf,
}

/// A transaction that is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    /// Its name.
    pub id: String,
    /// The same as a number.
    number: u64,
    /// Its journal.
    pub journal: PathBuf,
}

/// The number that the name of a transaction is.
fn number(id: &str) -> Option<u64> {
    let digits = id.len() >= 6 && id.bytes().all(|byte| byte.is_ascii_digit());
    let number = id.parse().ok().filter(|_| digits)?;
    (number < LAST_NUMBER).then_some(number)
}

impl StateDir {
    /// A directory; it is made when it is written to first.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self::on(path, Arc::new(RealDisk))
    }

    /// The same on another file system.
    pub fn on(path: impl Into<PathBuf>, disk: Arc<dyn Disk>) -> Self {
        let path = path.into();
        Self { path, disk }
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The journal of a transaction that has not come to its end.
    pub(super) fn running(&self) -> PathBuf {
        self.path.join("running.jsonl")
    }

    /// What a reset that is under way must put right in the end.
    pub(super) fn resetting(&self) -> PathBuf {
        self.path.join("reset.json")
    }

    fn done(&self) -> PathBuf {
        self.path.join("done")
    }

    /// Makes the directory, and takes its lock. Who only looks has it for a moment; with whoever has it longer this fails.
    pub(super) fn lock(&self) -> Result<Lock, StateError> {
        let done = self.done();
        fs::create_dir_all(&done).map_err(StateError::io("create", &done))?;
        let path = self.path.join("lock");
        // One that is there needs no file system that can be written to.
        let file = File::open(&path).or_else(|_| File::create(&path));
        let file = file.map_err(StateError::io("open", &path))?;
        let started = Instant::now();
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Lock { _file: file }),
                Err(Errno::WOULDBLOCK) if started.elapsed() < LOOK => {
                    thread::sleep(LOOK_AGAIN);
                }
                Err(Errno::WOULDBLOCK) => return Err(StateError::Busy { path }),
                Err(error) => return Err(StateError::io("lock", &path)(error.into())),
            }
        }
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

    /// Sees to it that the names in the directory of a file are on the disk too.
    fn sync(&self, path: &Path) -> Result<(), StateError> {
        let dir = path.parent().unwrap_or(Path::new("."));
        self.change("sync", dir, || File::open(dir)?.sync_all())
    }

    /// Removes a file for good.
    pub(super) fn discard(&self, path: &Path) -> Result<(), StateError> {
        self.remove(path)?;
        self.sync(path)
    }

    /// Gives a file another content, all at once.
    pub(super) fn replace(&self, path: &Path, text: &[u8]) -> Result<(), StateError> {
        let new = self.replacement(path, text)?;
        self.change("replace", path, || fs::rename(&new, path))?;
        self.sync(path)
    }

    /// A file with that content beside another; it may be there already.
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

    /// Begins the journal of a transaction, with a number that none has had. It is the running one when this returns,
    /// and there is none if this fails.
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

    /// A file for the journal of the next transaction, whose number goes into `id`.
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
                // Somebody else's, whatever it is.
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

    /// The journal of the transaction that has not come to its end, in order to go on with it.
    pub(super) fn open(&self) -> Result<Option<Journal>, StateError> {
        Journal::open(&self.running(), Arc::clone(&self.disk))
    }

    /// Closes the journal of a transaction that is over. Of all that are over, the last [`KEPT`] are kept.
    pub(super) fn retire(&self, journal: &mut Journal) -> Result<(), StateError> {
        journal.trim();
        self.discard(&self.running())?;
        // The transaction is over, whether there is something to tidy up or not.
        for old in self.finished().unwrap_or_default().iter().skip(KEPT) {
            drop(self.remove(&old.journal));
        }
        Ok(())
    }

    /// Moves a file out of the way that nobody can read, and says where it is then.
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
                reason: format!("{reason}; nothing is known of the change that it was about"),
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
            // Others may be there that are not of this program.
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

    /// For how long virtual machines were without their devices in the last of the changes that took any from them.
    pub(super) fn last_away(&self) -> Result<Option<Duration>, StateError> {
        /// How many changes to look at.
        const LAST: usize = 16;
        for finished in self.finished()?.iter().take(LAST) {
            if let Some(away) = Journal::away(&finished.journal) {
                return Ok(Some(away));
            }
        }
        Ok(None)
    }

    /// The transaction that has not come to its end.
    pub fn unfinished(&self) -> Result<Option<Unfinished>, StateError> {
        let running = self.running();
        let begin = match Journal::read(&running, Arc::clone(&self.disk)) {
            Ok(journal) => journal.map(|journal| journal.begin().clone()),
            // It may have come to its end this moment.
            Err(StateError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Ok(None);
            }
            // Whoever recovers says what is wrong with it.
            Err(StateError::Journal { .. } | StateError::Version { .. }) => None,
            Err(error) => return Err(error),
        };
        Ok(Some(Unfinished {
            id: begin.as_ref().map(|begin| begin.id.clone()),
            vms: begin.map(|begin| begin.vms).unwrap_or_default(),
            journal: running,
        }))
    }

    /// What there is to know. `boot` is what the kernel calls this start of the machine.
    pub fn status(&self, boot: &str) -> Result<Status, StateError> {
        // While this has the lock nobody begins or ends a change, so that one that has ended is not told as interrupted.
        let (busy, look) = self.look()?;
        let unfinished = self.unfinished()?;
        drop(look);
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

    /// Whether another process changes the host; if none does, none begins to until the file is closed.
    fn look(&self) -> Result<(bool, Option<File>), StateError> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_looks_keeps_nobody_from_a_change_and_who_changes_does() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::new(dir.path());
        drop(state.lock().unwrap());
        let (busy, look) = state.look().unwrap();
        assert!(!busy);
        let looking = thread::spawn(move || {
            thread::sleep(LOOK / 50);
            drop(look);
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
