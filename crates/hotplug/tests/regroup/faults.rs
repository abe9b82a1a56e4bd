//! What goes wrong at which step of a transaction, and what the state of everything is at each.
//!
//! A step is a write to the host, a change to the state directory, or a record that has been written. They have one
//! numbering for all processes that a transaction takes.

use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash, Hasher};
use std::io;
use std::os::unix::fs::FileExt;
use std::panic::resume_unwind;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use hotplug::regroup::{Disk, Progress, Record};

use crate::machine::Killed;

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Event {
    /// The step fails.
    Fail,
    /// It is done, and fails all the same.
    FailsLate,
    /// It fails, and so does from now on, in this process, every step with the same file; or with the state directory.
    Stuck,
    /// The process ends before it.
    Die,
    /// Something happens to the host or to the virtual machine.
    World(World),
}

/// What others do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum World {
    /// A device is pulled.
    DeviceGone,
    /// The port above it is.
    PortGone,
    /// Another device is where it was.
    DeviceReplaced,
    /// Another port is.
    PortReplaced,
    /// Devices have other bus numbers when they are found again.
    Renumbered,
    /// The guest does not let go of a device.
    Stalls,
    /// The virtual machine takes nothing back.
    Refuses,
    /// It dies.
    VmDies,
    /// The process ends while it asks for one of two devices, with the other one done.
    DiesAsking,
}

/// Which kind a step is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Host,
    Disk,
    Record,
}

/// A step, as it is about to be done.
pub(crate) struct Step {
    pub(crate) number: usize,
    pub(crate) kind: Kind,
    pub(crate) is_append: bool,
    pub(crate) is_undoing: bool,
    /// Whether recovery compares the host with what it was before anything else.
    pub(crate) looks_next: bool,
    /// The same for all ways that lead to the same.
    pub(crate) key: u64,
    /// The same for all that leave the same if the process ends before it.
    pub(crate) left: u64,
    /// How many events there were before.
    pub(crate) events: usize,
}

/// Whether to go on.
pub(crate) type Look = Box<dyn FnMut(&Step) -> bool + Send>;

/// The steps of one transaction. Clones are the same.
#[derive(Clone)]
pub(crate) struct Faults(Arc<Mutex<Inner>>);

struct Inner {
    plan: Vec<(usize, Event)>,
    events: usize,
    steps: usize,
    look: Option<Look>,
    /// What later steps fail as well.
    stuck: Option<String>,
    /// What is on the disk, as far as recovery goes by it.
    journal: String,
    files: u64,
    commit: usize,
    /// Where this process is.
    memory: String,
    round: (usize, u64),
    /// Set by those who know.
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

    /// A process begins. What another one had in memory is gone, and what was stuck is not any more.
    pub(crate) fn begin_process(&self, what: &str) {
        let mut inner = self.lock();
        inner.memory = what.to_owned();
        inner.round = (0, 0);
        inner.stuck = None;
    }

    /// From now on nothing goes wrong, and nobody looks.
    pub(crate) fn end(&self) {
        let mut inner = self.lock();
        (inner.look, inner.stuck) = (None, None);
        inner.plan.clear();
    }

    /// Whether this went on as another way had before.
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

    /// What goes wrong at a step; `None` if nothing does.
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

    /// Takes note of a record, and says what happens then.
    pub(crate) fn told(&self, progress: &Progress<'_>) -> Option<Event> {
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

    /// Takes note of what is on the disk.
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

/// What a step that is stuck has in common with those that are stuck too.
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
    // The long ones are rounds of undoing, and the beginning.
    let record = value["record"].as_str().unwrap_or("long").to_owned();
    let action = value["action"].as_u64().unwrap_or(0);
    (record, usize::try_from(action).unwrap())
}

impl Inner {
    /// What recovery would make of the journal.
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
