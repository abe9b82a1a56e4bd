//! A journal: a file with a record in each line.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::action::Action;
use super::course::{Course, Next, OutOfCourse};
use super::difference::Difference;
use super::error::StateError;
use super::record::{Begin, Outcome, Record, VERSION};

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
    /// Bytes that were there when it was read, without a last line that was not written to its end.
    length: u64,
    path: PathBuf,
    begin: Begin,
    course: Course,
    /// The actions of the present round of undoing.
    round: Vec<Action>,
    /// What failed first.
    failure: Option<(String, String)>,
    end: Option<(Outcome, Vec<Difference>)>,
}

impl Journal {
    /// Begins a journal. It is on the disk when this returns.
    pub(super) fn create(path: &Path, begin: Begin) -> Result<Self, StateError> {
        let mut file = OpenOptions::new()
            .create_new(true)
            .append(true)
            .open(path)
            .map_err(StateError::io("create", path))?;
        append(&mut file, path, &Record::Begin(Box::new(begin.clone())))?;
        sync_dir(path)?;
        Ok(Self {
            file,
            length: 0,
            path: path.to_owned(),
            course: Course::new(&begin),
            begin,
            round: Vec::new(),
            failure: None,
            end: None,
        })
    }

    /// For how long virtual machines were without the devices that they had to let go of; none if they have not let go
    /// of any, or have not got them back.
    pub(super) fn away(path: &Path) -> Result<Option<Duration>, StateError> {
        let text = fs::read_to_string(path).map_err(StateError::io("read", path))?;
        let entries = text
            .lines()
            .map_while(|line| serde_json::from_str(line).ok());
        Ok(away(entries))
    }

    /// Reads a journal in order to go on with it; `None` if it has no record: nothing was done then. A last line that
    /// was not written to its end is cut off.
    pub(super) fn open(path: &Path) -> Result<Option<Self>, StateError> {
        let journal = Self::read(path)?;
        if let Some(journal) = &journal {
            let cut = journal.file.set_len(journal.length);
            cut.map_err(StateError::io("cut", path))?;
        }
        Ok(journal)
    }

    /// Reads a journal as far as it is written; `None` if it has no record.
    pub(super) fn read(path: &Path) -> Result<Option<Self>, StateError> {
        let text = fs::read(path).map_err(StateError::io("read", path))?;
        let whole = text.iter().rposition(|byte| *byte == b'\n');
        let whole = whole.map_or(0, |end| end + 1);
        let text = text.get(..whole).unwrap_or_default();
        let odd = |line: usize, reason: String| StateError::Journal {
            path: path.to_owned(),
            line,
            reason,
        };
        let mut journal: Option<Self> = None;
        for (line, number) in text.split(|byte| *byte == b'\n').zip(1..) {
            if line.is_empty() {
                continue;
            }
            if journal.is_none() {
                let heading: Heading =
                    serde_json::from_slice(line).map_err(|error| odd(number, error.to_string()))?;
                if heading.version != VERSION {
                    let found = heading.version;
                    let reason = format!("version {found}: this program reads version {VERSION}");
                    return Err(odd(number, reason));
                }
            }
            let entry: Entry =
                serde_json::from_slice(line).map_err(|error| odd(number, error.to_string()))?;
            match (&mut journal, entry.record) {
                (None, Record::Begin(begin)) => {
                    let file = OpenOptions::new()
                        .append(true)
                        .open(path)
                        .map_err(StateError::io("open", path))?;
                    journal = Some(Self {
                        file,
                        length: u64::try_from(whole).unwrap_or(u64::MAX),
                        path: path.to_owned(),
                        course: Course::new(&begin),
                        begin: *begin,
                        round: Vec::new(),
                        failure: None,
                        end: None,
                    });
                }
                (Some(journal), record) => journal
                    .note(record)
                    .map_err(|error| odd(number, error.to_string()))?,
                (None, _) => return Err(odd(number, "not how a journal begins".to_owned())),
            }
        }
        Ok(journal)
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

    /// Writes a record. It is on the disk when this returns.
    pub(super) fn write(&mut self, record: Record) -> Result<(), StateError> {
        append(&mut self.file, &self.path, &record)?;
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

fn append(file: &mut File, path: &Path, record: &Record) -> Result<(), StateError> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let entry = Entry {
        at_ms: now.map_or(0, |now| u64::try_from(now.as_millis()).unwrap_or(u64::MAX)),
        record: record.clone(),
    };
    let line = serde_json::to_vec(&entry).map_err(|error| StateError::Io {
        verb: "put a record into",
        path: path.to_owned(),
        source: error.into(),
    })?;
    let written = file.write_all(&[line.as_slice(), b"\n"].concat());
    written.map_err(StateError::io("write to", path))?;
    file.sync_data().map_err(StateError::io("sync", path))
}

/// Sees to it that the name of a file is on the disk too.
pub(super) fn sync_dir(path: &Path) -> Result<(), StateError> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let synced = File::open(dir).and_then(|dir| dir.sync_all());
    synced.map_err(StateError::io("sync", dir))
}
