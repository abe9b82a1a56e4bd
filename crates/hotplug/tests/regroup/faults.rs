//! Injects faults at the steps of a transaction, and records the state at each step.
//!
//! A step is a write to the host, a change of the state directory, or a written record. Steps are numbered through all
//! processes of a transaction.

use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash, Hasher};
use std::io;
use std::os::unix::fs::FileExt;
use std::panic::resume_unwind;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use hotplug::regroup::{Disk, Progress, Record};

use crate::fake_host::Killed;

/// An injected fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Event {
    /// The step fails.
    Fail,
    /// The step is done, and reports a failure.
    FailsLate,
    /// The step fails, and so does every later step of this process with the same file, or with the state directory.
    Stuck,
    /// The process ends before the step.
    Die,
    /// An event outside the process.
    ExternalEvent(ExternalEvent),
}

/// An event outside the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum ExternalEvent {
    /// A device is removed from the machine.
    DeviceGone,
    /// The port above the device is removed.
    PortGone,
    /// A different device is in the device's place.
    DeviceReplaced,
    /// A different port is in the port's place.
    PortReplaced,
    /// Devices get other bus numbers when they are found again.
    Renumbered,
    /// The guest does not release a device.
    Stalls,
    /// The virtual machine takes no device back.
    Refuses,
    /// The VMM ends.
    VmDies,
    /// The process ends during the call for one of two devices, after the call for the other.
    DiesAsking,
}

/// Kind of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Host,
    Disk,
    Record,
}

/// A step that is about to be done.
pub(crate) struct Step {
    pub(crate) number: usize,
    pub(crate) kind: Kind,
    pub(crate) is_append: bool,
    pub(crate) is_undoing: bool,
    /// Whether recovery scans and compares the host next.
    pub(crate) looks_next: bool,
    /// Hash of the state: equal for all runs that reach the same state.
    pub(crate) key: u64,
    /// Hash of the state that remains if the process ends before the step.
    pub(crate) left: u64,
    /// Number of earlier events.
    pub(crate) events: usize,
}

/// Called for each step; returns whether to continue.
pub(crate) type Look = Box<dyn FnMut(&Step) -> bool + Send>;

/// The steps of one transaction. Clones share them.
#[derive(Clone)]
pub(crate) struct Faults(Arc<Mutex<Inner>>);

struct Inner {
    plan: Vec<(usize, Event)>,
    events: usize,
    steps: usize,
    look: Option<Look>,
    /// What makes later steps fail too.
    stuck: Option<String>,
    /// Contents of the journal, as far as recovery depends on them.
    journal: String,
    files: u64,
    commit: usize,
    /// Position of this process.
    memory: String,
    round: (usize, u64),
    /// Set by the fake host and the fake guest.
    host: u64,
    guest: String,
    merged: bool,
}

impl std::fmt::Debug for Faults {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Faults")
    }
}

fn hash(value: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

impl Faults {
    pub(crate) fn new(plan: &[(usize, Event)], look: Look) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            plan: plan.to_vec(),
            events: 0,
            steps: 0,
            look: Some(look),
            stuck: None,
            journal: String::new(),
            files: 0,
            commit: usize::MAX,
            memory: String::new(),
            round: (0, 0),
            host: 0,
            guest: String::new(),
            merged: false,
        })))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Begins a process: the memory of the former process is lost, and persistent faults end.
    pub(crate) fn begin_process(&self, what: &str) {
        let mut inner = self.lock();
        inner.memory = what.to_owned();
        inner.round = (0, 0);
        inner.stuck = None;
    }

    /// Ends fault injection.
    pub(crate) fn end(&self) {
        let mut inner = self.lock();
        (inner.look, inner.stuck) = (None, None);
        inner.plan.clear();
    }

    /// Whether this run reached a state of an earlier run.
    pub(crate) fn is_merged(&self) -> bool {
        self.lock().merged
    }

    pub(crate) fn events(&self) -> usize {
        self.lock().events
    }

    pub(crate) fn steps(&self) -> usize {
        self.lock().steps
    }

    pub(crate) fn set_host(&self, host: u64) {
        self.lock().host = host;
    }

    pub(crate) fn set_guest(&self, guest: String) {
        self.lock().guest = guest;
    }

    /// The fault at a step; `None` if there is none.
    pub(crate) fn step(&self, kind: Kind, what: &str) -> Option<Event> {
        let mut inner = self.lock();
        let number = inner.steps;
        inner.steps += 1;
        let event = inner.plan.iter().find(|(at, _)| *at == number);
        let event = event.map(|(_, event)| *event);
        if event.is_none() && inner.events == inner.plan.len() {
            inner.look(number, kind, what);
        }
        if event.is_some() {
            inner.events += 1;
        }
        if event == Some(Event::Stuck) {
            inner.stuck = Some(stuck(kind, what));
        }
        if inner.merged || event == Some(Event::Die) {
            drop(inner);
            resume_unwind(Box::new(Killed));
        }
        let stuck = inner
            .stuck
            .as_ref()
            .is_some_and(|it| *it == stuck(kind, what));
        event.or(stuck.then_some(Event::Stuck))
    }

    /// Records a written record and returns the fault after it.
    pub(crate) fn recorded(&self, progress: &Progress<'_>) -> Option<Event> {
        {
            let mut inner = self.lock();
            let (number, round) = inner.round;
            match progress.record {
                Record::Begin(begin) => inner.commit = begin.commit,
                Record::Undo { actions } => {
                    inner.round = (number + 1, hash(format!("{actions:?}")));
                }
                _ => {}
            }
            inner.memory = match progress.record {
                Record::Undo { .. } | Record::Begin(_) | Record::End { .. } => {
                    format!("{:?}", std::mem::discriminant(progress.record))
                }
                Record::Failed { .. } => "failed".to_owned(),
                Record::UndoFailed { action, .. } => format!("{round} undone {action}"),
                Record::Undone { action } => format!("{round} undone {action}"),
                other => format!("{round} {other:?}"),
            };
        }
        self.step(Kind::Record, "")
    }

    /// Records the contents of the disk.
    fn changed(&self, verb: &str, path: &Path) {
        let is_journal = path.extension().is_some_and(|it| it == "jsonl");
        if verb == "write to" && is_journal {
            let last = last_record(path);
            let mut inner = self.lock();
            inner.append(&last);
            return;
        }
        let top = path.ancestors().find(|dir| dir.join("lock").exists());
        let files = top.map(|dir| {
            ["running.jsonl", "held.json", "held.json.new"].map(|name| {
                let path = dir.join(name);
                if name.ends_with('l') {
                    return vec![u8::from(path.exists())];
                }
                fs::read(path).unwrap_or_default()
            })
        });
        self.lock().files = hash(files);
    }
}

/// The property that persistent faults share.
fn stuck(kind: Kind, what: &str) -> String {
    match kind {
        Kind::Disk => "disk".to_owned(),
        Kind::Host | Kind::Record => what.to_owned(),
    }
}

/// Kind and action of the last record in a journal.
fn last_record(path: &Path) -> (String, usize) {
    let file = fs::File::open(path).unwrap();
    let length = file.metadata().unwrap().len();
    let from = length.saturating_sub(900);
    let mut tail = vec![0; usize::try_from(length - from).unwrap()];
    file.read_exact_at(&mut tail, from).unwrap();
    let tail = String::from_utf8_lossy(&tail).into_owned();
    let line = tail.trim_end().rsplit('\n').next().unwrap_or_default();
    let value: serde_json::Value = serde_json::from_str(line).unwrap_or_default();
    // Only undo records and the begin record are longer.
    let record = value["record"].as_str().unwrap_or("long").to_owned();
    let action = value["action"].as_u64().unwrap_or(0);
    (record, usize::try_from(action).unwrap())
}

impl Inner {
    /// The state that recovery would derive from the journal.
    fn append(&mut self, (record, action): &(String, usize)) {
        let next = match record.as_str() {
            "started" => *action,
            "succeeded" => *action + 1,
            "end" => usize::MAX,
            "resumed" => return,
            _ => 0,
        };
        self.journal = if next >= self.commit {
            format!("from {next}")
        } else {
            "undo".to_owned()
        };
    }

    fn look(&mut self, number: usize, kind: Kind, what: &str) {
        let left = hash((
            self.host,
            &self.guest,
            &self.journal,
            self.files,
            self.events,
        ));
        let memory = (&self.memory, self.round.0, &self.stuck);
        let key = hash((left, memory, what, kind as u8));
        let step = Step {
            number,
            kind,
            is_undoing: self.round.0 > 0,
            looks_next: self.memory.contains("Resumed"),
            is_append: kind == Kind::Disk
                && what.starts_with("write to")
                && what.ends_with("jsonl"),
            key,
            left,
            events: self.events,
        };
        if let Some(look) = &mut self.look {
            self.merged = !look(&step);
        }
    }
}

impl Disk for Faults {
    fn change(
        &self,
        verb: &'static str,
        path: &Path,
        make: &mut dyn FnMut() -> io::Result<()>,
    ) -> io::Result<()> {
        let name = path.file_name().unwrap().to_string_lossy();
        let event = self.step(Kind::Disk, &format!("{verb} {name}"));
        // ENOSPC, EIO and EROFS.
        let error = |step: usize| io::Error::from_raw_os_error([28, 5, 30][step % 3]);
        match event {
            None | Some(Event::FailsLate) => {
                make()?;
                self.changed(verb, path);
            }
            Some(_) => return Err(error(self.lock().steps)),
        }
        if event.is_some() {
            return Err(error(self.lock().steps));
        }
        Ok(())
    }
}
