//! A journal: a file with a record in each line.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::action::Action;
use super::course::{Course, Next, OutOfCourse, ROUNDS};
use super::difference::Difference;
use super::disk::{Disk, reserve};
use super::error::StateError;
use super::record::{Begin, Outcome, Record, VERSION};
use super::sealed::{seal, unseal};

/// How long the text of an error may be in a record, in bytes.
const ERROR: usize = 512;

/// A line: when, and what.
#[derive(Serialize, Deserialize)]
struct Entry {
    /// Milliseconds since 1970.
    at_ms: u64,
    #[serde(flatten)]
    record: Record,
}

/// Read of the first line before anything else, so that another version is told as such.
#[derive(Deserialize)]
struct Heading {
    version: u32,
}

/// A journal that is written, with what follows from it.
pub(super) struct Journal {
    file: File,
    disk: Arc<dyn Disk>,
    path: PathBuf,
    /// Bytes of the records that are on the disk.
    length: u64,
    begin: Begin,
    course: Course,
    /// The actions of the present round of undoing.
    round: Vec<Action>,
    /// What failed first.
    failure: Option<(String, String)>,
    end: Option<(Outcome, Vec<Difference>)>,
    /// Why it does not say all that happened.
    gap: Option<String>,
    writing: Writing,
}

/// Whether records are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Writing {
    /// They are.
    On,
    /// They cannot be any more, and are in memory only.
    Lost {
        /// Whether the commit is on the disk, so that whoever recovers goes on from there.
        committed: bool,
    },
}

impl Journal {
    /// Begins a journal in a new file. It is on the disk when this returns, and so is the space for all that comes.
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
            course: Course::new(&begin),
            begin,
            round: Vec::new(),
            failure: None,
            end: None,
            gap: None,
            writing: Writing::On,
        }
    }

    /// For how long virtual machines were without the devices that they had to let go of; none if they have not let go
    /// of any, or have not got them back, or nobody can read that.
    pub(super) fn away(path: &Path) -> Option<Duration> {
        let text = fs::read(path).ok()?;
        let lines = text.split(|byte| *byte == b'\n');
        away(lines.map_while(|line| unseal(line).ok()))
    }

    /// Reads a journal in order to go on with it; `None` if it has no record: nothing was done then. What cannot be read
    /// is cut off.
    pub(super) fn open(path: &Path, disk: Arc<dyn Disk>) -> Result<Option<Self>, StateError> {
        let Some(mut journal) = Self::read(path, disk)? else {
            return Ok(None);
        };
        let length = journal.length;
        let cut = journal.change("cut", |file| file.set_len(length));
        journal.lose(cut.err());
        // Without it the disk may be full before the end, and then it is undone all the same.
        let room = journal.room(0);
        drop(journal.reserve(room));
        Ok(Some(journal))
    }

    /// Reads a journal as far as it makes sense; `None` if it has no record.
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
            return Err(odd("not how a journal begins".to_owned()));
        };
        // One that can only be read is recovered from memory.
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
                    // Of the last one nobody expects that it was written to its end.
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

    /// Space for all records that can follow one of `first` bytes, and for itself.
    fn room(&self, first: usize) -> u64 {
        /// A record of an action that has no error in it, and with one.
        const SHORT: u64 = 128;
        const LONG: u64 = SHORT + 2 * ERROR as u64;
        /// An action of undoing, without the lists of devices and groups in it.
        const ACTION: u64 = 384;
        /// Actions for each function in a round of undoing.
        const ACTIONS: u64 = 16;
        let count = |length: usize| u64::try_from(length).unwrap_or(u64::MAX);
        let begin = count(first.max(serde_json::to_vec(&self.begin).map_or(0, |text| text.len())));
        let forward = count(self.begin.actions.len()).saturating_mul(2 * SHORT);
        let functions = count(self.begin.baseline.functions.len()).saturating_add(1);
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

    /// From here on nothing is written.
    fn lose(&mut self, error: Option<StateError>) {
        if let Some(error) = error {
            self.gap.get_or_insert_with(|| error.to_string());
            self.writing = Writing::Lost {
                committed: self.course.is_committed(),
            };
        }
    }

    /// Why it does not say all that happened.
    pub(super) fn gap(&self) -> Option<&String> {
        self.gap.as_ref()
    }

    /// Whether whoever finds it undoes what is done now.
    pub(super) fn is_lost_before_commit(&self) -> bool {
        self.writing == Writing::Lost { committed: false }
    }

    /// Gives back the space that was not needed.
    pub(super) fn trim(&mut self) {
        let length = self.length;
        drop(self.change("cut", |file| file.set_len(length)));
    }

    /// The name of its file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn begin(&self) -> &Begin {
        &self.begin
    }

    pub(super) fn next(&self) -> Next {
        self.course.next()
    }

    /// The actions of the present round of undoing.
    pub(super) fn round(&self) -> &[Action] {
        &self.round
    }

    /// What was being done when something failed first, and what happened.
    pub(super) fn failure(&self) -> Option<&(String, String)> {
        self.failure.as_ref()
    }

    /// How it ended, and what is not as it was.
    pub(super) fn end(&self) -> Option<&(Outcome, Vec<Difference>)> {
        self.end.as_ref()
    }

    /// Writes a record. It is on the disk when this returns, or in memory only if there is a [`gap`](Self::gap).
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

    fn note(&mut self, record: Record) -> Result<(), OutOfCourse> {
        self.course.take(&record)?;
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

/// How long it is from the first order to let go of devices to the last time that they were back.
fn away(entries: impl Iterator<Item = Entry>) -> Option<Duration> {
    let (mut forward, mut round) = (Vec::new(), Vec::new());
    let (mut left, mut back) = (None, None);
    for entry in entries {
        let at = Duration::from_millis(entry.at_ms);
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
        verb: "put a record into",
        path: path.to_owned(),
        source: error.into(),
    })
}

fn length(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}
