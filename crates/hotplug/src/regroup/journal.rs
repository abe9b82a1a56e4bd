//! The journal of a transaction: a file with one record per line.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::action::Action;
use super::difference::Difference;
use super::disk::{Disk, reserve};
use super::error::StateError;
use super::record::{Begin, Outcome, Record, VERSION};
use super::saga_state::{InvalidRecord, Next, ROUNDS, SagaState};
use super::sealed::{seal, unseal};

/// Largest length of an error text in a record, in bytes.
const ERROR: usize = 512;

/// A line: time and record.
#[derive(Serialize, Deserialize)]
struct Entry {
    /// Milliseconds since 1970.
    at_ms: u64,
    #[serde(flatten)]
    record: Record,
}

/// The part of the first line that is parsed first, to detect other versions.
#[derive(Deserialize)]
struct Heading {
    version: u32,
}

/// A journal open for writing, and the state of its transaction.
pub(super) struct Journal {
    file: File,
    disk: Arc<dyn Disk>,
    path: PathBuf,
    /// Length of the records on disk, in bytes.
    length: u64,
    begin: Begin,
    state: SagaState,
    /// The actions of the current undo round.
    round: Vec<Action>,
    /// The first failure: action and error.
    failure: Option<(String, String)>,
    end: Option<(Outcome, Vec<Difference>)>,
    /// Why the journal is incomplete, if it is.
    gap: Option<String>,
    writing: Writing,
}

/// Whether records reach the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Writing {
    /// They do.
    On,
    /// Writing failed: further records are kept in memory only.
    Lost {
        /// Whether the commit is on disk, so that recovery continues the transaction.
        committed: bool,
    },
}

impl Journal {
    /// Begins a journal in a new file. On return the first record is on disk, and space for all further records is
    /// reserved.
    pub(super) fn create(
        file: File,
        disk: Arc<dyn Disk>,
        path: &Path,
        begin: Begin,
    ) -> Result<Self, StateError> {
        let mut journal = Self::new(file, disk, path, begin.clone());
        let line = line(&Record::Begin(Box::new(begin)), path)?;
        let room = journal.room(line.len());
        journal.reserve(room)?;
        journal.append(&line)?;
        Ok(journal)
    }

    fn new(file: File, disk: Arc<dyn Disk>, path: &Path, begin: Begin) -> Self {
        Self {
            file,
            disk,
            path: path.to_owned(),
            length: 0,
            state: SagaState::new(&begin),
            begin,
            round: Vec::new(),
            failure: None,
            end: None,
            gap: None,
            writing: Writing::On,
        }
    }

    /// How long virtual machines were without the devices that they released, in milliseconds; none if they released
    /// none or did not get them back, or if the journal cannot be read.
    pub(super) fn away_ms(path: &Path) -> Option<u64> {
        let text = fs::read(path).ok()?;
        let lines = text.split(|byte| *byte == b'\n');
        away_ms(lines.map_while(|line| unseal(line).ok()))
    }

    /// Opens a journal to continue it; `None` if it has no record, which means that nothing was done. Unreadable lines
    /// at the end are cut off.
    pub(super) fn open(path: &Path, disk: Arc<dyn Disk>) -> Result<Option<Self>, StateError> {
        let Some(mut journal) = Self::read(path, disk)? else {
            return Ok(None);
        };
        let length = journal.length;
        let cut = journal.change("cut", |file| file.set_len(length));
        journal.lose(cut.err());
        // If this fails, a full disk may prevent further records, and the transaction is undone nevertheless.
        let room = journal.room(0);
        drop(journal.reserve(room));
        Ok(Some(journal))
    }

    /// Reads a journal up to the first invalid line; `None` if it has no record.
    pub(super) fn read(path: &Path, disk: Arc<dyn Disk>) -> Result<Option<Self>, StateError> {
        let text = fs::read(path).map_err(StateError::io("read", path))?;
        let odd = |reason: String| StateError::Journal {
            path: path.to_owned(),
            line: 1,
            reason,
        };
        let mut lines = text.split_inclusive(|byte| *byte == b'\n').zip(1..);
        let whole = |line: &[u8]| line.last() == Some(&b'\n');
        let Some((first, _)) = lines.next().filter(|(line, _)| whole(line)) else {
            return Ok(None);
        };
        if let Ok(Heading { version }) = serde_json::from_slice(first)
            && version != VERSION
        {
            return Err(StateError::Version {
                path: path.to_owned(),
                found: version,
                wanted: VERSION,
            });
        }
        let entry: Entry = unseal(first.trim_ascii_end()).map_err(odd)?;
        let Record::Begin(begin) = entry.record else {
            return Err(odd(
                "the first record does not begin a transaction".to_owned()
            ));
        };
        // If the file is read-only, recovery works in memory.
        let file = File::options().write(true).open(path);
        let (file, lost) = match file {
            Ok(file) => (file, None),
            Err(error) => {
                let file = File::open(path).map_err(StateError::io("open", path))?;
                (file, Some(StateError::io("write to", path)(error)))
            }
        };
        let mut journal = Self::new(file, disk, path, *begin);
        journal.length = length(first);
        journal.lose(lost);
        for (line, number) in lines {
            let record = unseal(line.trim_ascii_end()).map(|entry: Entry| entry.record);
            let noted =
                record.and_then(|record| journal.note(record).map_err(|error| error.to_string()));
            match noted {
                Ok(()) => journal.length = journal.length.saturating_add(length(line)),
                Err(reason) => {
                    // An incomplete last line is expected after a crash.
                    if whole(line) {
                        let reason = format!("{}, line {number}: {reason}", path.display());
                        journal.gap.get_or_insert(reason);
                    }
                    break;
                }
            }
        }
        Ok(Some(journal))
    }

    /// Space for the first record and all records that can follow, in bytes.
    fn room(&self, first: usize) -> u64 {
        /// Length of an action record without an error, and with one.
        const SHORT: u64 = 128;
        const LONG: u64 = SHORT + 2 * ERROR as u64;
        /// Length of an undo action without its lists of devices and groups.
        const ACTION: u64 = 384;
        /// Actions per function in an undo round.
        const ACTIONS: u64 = 16;
        let count = |length: usize| u64::try_from(length).unwrap_or(u64::MAX);
        let begin = count(first.max(serde_json::to_vec(&self.begin).map_or(0, |text| text.len())));
        let forward = count(self.begin.actions.len()).saturating_mul(2 * SHORT);
        let functions = count(self.begin.snapshot.functions.len()).saturating_add(1);
        let actions = functions.saturating_mul(ACTIONS);
        let steps = actions.saturating_mul(ACTION + SHORT + LONG);
        let round = begin.saturating_mul(2).saturating_add(steps);
        let rounds = round.saturating_mul(count(ROUNDS).saturating_add(1));
        let fixed = begin.saturating_add(forward).saturating_add(LONG);
        fixed.saturating_add(rounds)
    }

    fn reserve(&mut self, room: u64) -> Result<(), StateError> {
        let at = self.length;
        self.change("reserve space for", |file| reserve(file, at, room))
    }

    fn change(
        &mut self,
        verb: &'static str,
        make: impl Fn(&File) -> io::Result<()>,
    ) -> Result<(), StateError> {
        let made = self.disk.change(verb, &self.path, &mut || make(&self.file));
        made.map_err(StateError::io(verb, &self.path))
    }

    fn append(&mut self, line: &[u8]) -> Result<(), StateError> {
        let at = self.length;
        self.change("write to", |file| {
            file.write_all_at(line, at)?;
            file.sync_data()
        })?;
        self.length = at.saturating_add(length(line));
        Ok(())
    }

    /// Stops writing.
    fn lose(&mut self, error: Option<StateError>) {
        if let Some(error) = error {
            self.gap.get_or_insert_with(|| error.to_string());
            self.writing = Writing::Lost {
                committed: self.state.is_committed(),
            };
        }
    }

    /// Why the journal is incomplete, if it is.
    pub(super) fn gap(&self) -> Option<&String> {
        self.gap.as_ref()
    }

    /// Whether recovery would undo what is done now.
    pub(super) fn is_lost_before_commit(&self) -> bool {
        self.writing == Writing::Lost { committed: false }
    }

    /// Releases reserved space that was not needed.
    pub(super) fn trim(&mut self) {
        let length = self.length;
        drop(self.change("cut", |file| file.set_len(length)));
    }

    /// Path of the file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn begin(&self) -> &Begin {
        &self.begin
    }

    pub(super) fn next(&self) -> Next {
        self.state.next()
    }

    /// The actions of the current undo round.
    pub(super) fn round(&self) -> &[Action] {
        &self.round
    }

    /// The first failure: action and error.
    pub(super) fn failure(&self) -> Option<&(String, String)> {
        self.failure.as_ref()
    }

    /// The outcome and the remaining differences.
    pub(super) fn end(&self) -> Option<&(Outcome, Vec<Difference>)> {
        self.end.as_ref()
    }

    /// Writes a record. On return it is on disk, or in memory only if there is a [`gap`](Self::gap).
    pub(super) fn write(&mut self, mut record: Record) -> Result<(), StateError> {
        if let Record::Failed { error, .. } | Record::UndoFailed { error, .. } = &mut record {
            let end = (0..=ERROR).rev().find(|end| error.is_char_boundary(*end));
            error.truncate(end.unwrap_or_default());
        }
        if self.writing == Writing::On {
            let written = line(&record, &self.path).and_then(|line| self.append(&line));
            self.lose(written.err());
        }
        self.note(record).map_err(|error| StateError::Journal {
            path: self.path.clone(),
            line: 0,
            reason: error.to_string(),
        })
    }

    fn note(&mut self, record: Record) -> Result<(), InvalidRecord> {
        self.state.take(&record)?;
        match record {
            Record::Undo { actions } => self.round = actions,
            Record::Failed { action, error } if self.failure.is_none() => {
                let what = self.begin.actions.get(action);
                let what = what.map(ToString::to_string).unwrap_or_default();
                self.failure = Some((what, error));
            }
            Record::End { outcome, remains } => self.end = Some((outcome, remains)),
            _ => {}
        }
        Ok(())
    }
}

/// Time from the first unplug request until the last device was plugged back, in milliseconds.
fn away_ms(entries: impl Iterator<Item = Entry>) -> Option<u64> {
    let (mut forward, mut round) = (Vec::new(), Vec::new());
    let (mut left, mut back) = (None, None);
    for entry in entries {
        let at = entry.at_ms;
        match entry.record {
            Record::Begin(begin) => forward = begin.actions,
            Record::Undo { actions } => round = actions,
            Record::Started { action } => {
                if let (None, Some(Action::Unplug { .. })) = (left, forward.get(action)) {
                    left = Some(at);
                }
            }
            Record::Succeeded { action } => {
                if let Some(Action::Plug { .. }) = forward.get(action) {
                    back = Some(at);
                }
            }
            Record::Undone { action } => {
                if let Some(Action::Plug { .. }) = round.get(action) {
                    back = Some(at);
                }
            }
            Record::Failed { .. }
            | Record::Resumed { .. }
            | Record::UndoStarted { .. }
            | Record::UndoFailed { .. }
            | Record::End { .. } => {}
        }
    }
    back?.checked_sub(left?)
}

fn line(record: &Record, path: &Path) -> Result<Vec<u8>, StateError> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let entry = Entry {
        at_ms: now.map_or(0, |now| u64::try_from(now.as_millis()).unwrap_or(u64::MAX)),
        record: record.clone(),
    };
    seal(&entry).map_err(|error| StateError::Io {
        verb: "add a record to",
        path: path.to_owned(),
        source: error.into(),
    })
}

fn length(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}
