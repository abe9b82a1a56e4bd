//! Where transactions leave their journals.
//!
//! ```text
//! lock            held by the process that changes the host
//! running.jsonl   the journal of a transaction that has not come to its end
//! done/ID.jsonl   those of the last of the others
//! reset.json      what a reset that is under way must put right in the end
//! held.json       the ports that are kept awake
//! ```

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use iommu_group::Sbdf;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::error::StateError;
use super::journal::{Journal, sync_dir};

/// How many journals of transactions that are over are kept.
const KEPT: usize = 256;

/// How long somebody who looks may have the lock …
const LOOK: Duration = Duration::from_secs(1);

/// … and how often to see whether that is over.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// A directory that survives reboots, such as `/var/lib/p2pctl`.
#[derive(Debug, Clone)]
pub struct StateDir {
    path: PathBuf,
}

/// Whoever has this is the only one who changes the host.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

/// The ports that are kept awake for settings that the kernel would undo.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Held {
    /// What the kernel calls the start of the machine in which they are.
    pub(super) boot: String,
    /// What `power/control` of each port was.
    pub(super) ports: BTreeMap<Sbdf, String>,
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
    /// Its name; `None` if it ended before it began.
    pub id: Option<String>,
    /// Its journal.
    pub journal: PathBuf,
}

/// A transaction that is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    /// Its name.
    pub id: String,
    /// Its journal.
    pub journal: PathBuf,
}

impl StateDir {
    /// A directory; it is made when it is written to first.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
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
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(StateError::io("open", &path))?;
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

    /// Puts the journal of a transaction that is over away, and says where it is then. Of all that are over, the last
    /// [`KEPT`] are kept.
    pub(super) fn retire(&self, id: &str) -> Result<PathBuf, StateError> {
        let (from, to) = (self.running(), self.done().join(format!("{id}.jsonl")));
        fs::rename(&from, &to).map_err(StateError::io("move", &from))?;
        for old in self.finished()?.iter().skip(KEPT) {
            // What cannot be removed now is tried again next time; the transaction is over all the same.
            let _tried = fs::remove_file(&old.journal);
        }
        sync_dir(&to)?;
        sync_dir(&from)?;
        Ok(to)
    }

    /// A name for the next transaction: a number that none has had.
    pub(super) fn next_id(&self) -> Result<String, StateError> {
        let last = self
            .finished()?
            .first()
            .and_then(|f| f.id.parse::<u64>().ok());
        Ok(format!("{:06}", last.unwrap_or(0).saturating_add(1)))
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
            if let Some(id) = name.and_then(|name| name.strip_suffix(".jsonl")) {
                finished.push(Finished {
                    id: id.to_owned(),
                    journal: journal.clone(),
                });
            }
        }
        finished.sort_by(|a, b| b.id.cmp(&a.id));
        Ok(finished)
    }

    /// For how long virtual machines were without their devices in the last of the changes that took any from them.
    pub(super) fn last_away(&self) -> Result<Option<Duration>, StateError> {
        /// How many changes to look at.
        const LAST: usize = 16;
        for finished in self.finished()?.iter().take(LAST) {
            if let Some(away) = Journal::away(&finished.journal)? {
                return Ok(Some(away));
            }
        }
        Ok(None)
    }

    /// The ports that are kept awake in this start of the machine.
    pub(super) fn held(&self, boot: &str) -> Result<Held, StateError> {
        let path = self.path.join("held.json");
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(StateError::io("read", &path)(error)),
        };
        let none = Held {
            boot: boot.to_owned(),
            ports: BTreeMap::new(),
        };
        if text.is_empty() {
            return Ok(none);
        }
        let held: Held = serde_json::from_str(&text).map_err(|error| StateError::Journal {
            path,
            line: error.line(),
            reason: error.to_string(),
        })?;
        // After a reboot neither they nor the settings are.
        Ok(if held.boot == boot { held } else { none })
    }

    pub(super) fn set_held(&self, held: &Held) -> Result<(), StateError> {
        let (path, new) = (self.path.join("held.json"), self.path.join("held.json.new"));
        let mut text = serde_json::to_string_pretty(held).unwrap_or_default();
        text.push('\n');
        let write = || {
            let mut file = File::create(&new)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&new, &path)
        };
        write().map_err(StateError::io("write", &path))?;
        sync_dir(&path)
    }

    /// What there is to know. `boot` is what the kernel calls this start of the machine.
    pub fn status(&self, boot: &str) -> Result<Status, StateError> {
        let running = self.running();
        // While this has the lock nobody begins or ends a change, so that one that has ended is not told as interrupted.
        let (busy, look) = self.look()?;
        let unfinished = match Journal::read(&running) {
            Ok(journal) => Some(Unfinished {
                id: journal.map(|journal| journal.begin().id.clone()),
                journal: running,
            }),
            // It may have come to its end this moment.
            Err(StateError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        drop(look);
        let held = self.held(boot)?.ports.into_iter();
        Ok(Status {
            busy,
            unfinished,
            held: held.map(|(port, power)| HeldPort { port, power }).collect(),
            finished: self.finished()?,
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
