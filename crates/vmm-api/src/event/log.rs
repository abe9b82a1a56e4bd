//! The latest events, for any number of independent readers.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{Event, Record};

/// Number of events that a reader may fall behind before it misses some.
const KEPT: usize = 1024;

/// Prefix of the log target of messages about events. The name of the event follows.
pub const EVENTS: &str = "event.";

/// Formats an event as one line of text.
fn format_line(record: &Record) -> String {
    let properties = record.properties.iter().flatten();
    properties.fold(
        format!("event: {} {}", record.source, record.event),
        |line, (key, value)| format!("{line} {key}={value}"),
    )
}

/// The latest events. Clones share one log.
#[derive(Clone)]
pub struct EventLog(Arc<Shared>);

struct Shared {
    start: Instant,
    events: Mutex<Events>,
    more: Condvar,
}

struct Events {
    kept: VecDeque<Arc<Line>>,
    /// Number of the oldest event that is kept; the first event is 0.
    oldest: u64,
    closed: bool,
    /// Callbacks for every change, for readers that cannot wait on the condition variable.
    wakers: Vec<Box<dyn Fn() + Send>>,
}

/// A stored event. It takes a third of the memory of a [`Record`].
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Line {
    /// Name of the event.
    pub(crate) event: Box<str>,
    /// The record as one line of JSON.
    pub(crate) json: Box<str>,
}

impl Line {
    fn of(record: &Record) -> Self {
        let json = serde_json::to_string(record).unwrap_or_else(|error| {
            log::error!("cannot write an event: {error}");
            "null".to_owned()
        });
        Self {
            event: record.event.as_str().into(),
            json: json.into(),
        }
    }

    /// Parses the record.
    pub(crate) fn record(&self) -> serde_json::Result<Record> {
        serde_json::from_str(&self.json)
    }
}

/// Result of a read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Found {
    /// The next event and its number.
    Event(u64, Arc<Line>),
    /// Number of events that were dropped before the reader got them.
    Missed(u64),
    /// There is no new event.
    Nothing,
    /// The log is closed.
    End,
}

impl Default for EventLog {
    fn default() -> Self {
        Self::new()
    }
}

impl EventLog {
    /// Creates a log whose timestamps count from now.
    pub fn new() -> Self {
        Self(Arc::new(Shared {
            start: Instant::now(),
            events: Mutex::new(Events {
                kept: VecDeque::new(),
                oldest: 0,
                closed: false,
                wakers: Vec::new(),
            }),
            more: Condvar::new(),
        }))
    }

    /// Publishes an event. Never waits for a reader.
    pub fn publish(&self, event: &Event) {
        self.append(event.record(self.0.start.elapsed()));
    }

    /// Publishes a record that is not an [`Event`] of a VM.
    pub fn note(&self, source: &str, event: &str, properties: BTreeMap<String, String>) {
        self.append(Record {
            timestamp: self.0.start.elapsed(),
            source: source.to_owned(),
            event: event.to_owned(),
            properties: (!properties.is_empty()).then_some(properties),
        });
    }

    fn append(&self, record: Record) {
        log::info!(target: &format!("{EVENTS}{}", record.event), "{}", format_line(&record));
        let mut events = self.lock();
        events.kept.push_back(Arc::new(Line::of(&record)));
        while events.kept.len() > KEPT {
            events.kept.pop_front();
            events.oldest = events.oldest.saturating_add(1);
        }
        self.wake(&events);
    }

    /// Closes the log: no event follows.
    pub fn close(&self) {
        let mut events = self.lock();
        events.closed = true;
        self.wake(&events);
    }

    /// The record that replaces `count` missed events.
    pub(crate) fn missed(&self, count: u64) -> Line {
        let properties = BTreeMap::from([("count".to_owned(), count.to_string())]);
        Line::of(&Record {
            timestamp: self.0.start.elapsed(),
            source: "vmm".to_owned(),
            event: "events-missed".to_owned(),
            properties: Some(properties),
        })
    }

    /// A reader that begins with the next event.
    pub(crate) fn reader(&self) -> Reader {
        let events = self.lock();
        let next = events.end();
        drop(events);
        self.reader_from(next)
    }

    /// A reader that begins with event number `next`.
    pub(crate) fn reader_from(&self, next: u64) -> Reader {
        Reader {
            log: self.clone(),
            next,
        }
    }

    /// Calls `waker` at every change from now on.
    #[cfg(feature = "server")]
    pub(crate) fn on_change(&self, waker: impl Fn() + Send + 'static) {
        self.lock().wakers.push(Box::new(waker));
    }

    fn wake(&self, events: &Events) {
        self.0.more.notify_all();
        for waker in &events.wakers {
            waker();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Events> {
        self.0.events.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Events {
    /// Number of the next event.
    fn end(&self) -> u64 {
        let kept = u64::try_from(self.kept.len()).unwrap_or(u64::MAX);
        self.oldest.saturating_add(kept)
    }

    fn find(&self, next: u64) -> Found {
        let Some(at) = next.checked_sub(self.oldest) else {
            return Found::Missed(self.oldest.saturating_sub(next));
        };
        let line = usize::try_from(at).ok().and_then(|at| self.kept.get(at));
        match line {
            Some(line) => Found::Event(next, Arc::clone(line)),
            None if self.closed => Found::End,
            None => Found::Nothing,
        }
    }
}

/// A reader of the log, in order.
pub(crate) struct Reader {
    log: EventLog,
    next: u64,
}

impl Reader {
    /// The next result, without waiting.
    #[cfg(any(test, feature = "server"))]
    pub(crate) fn poll(&mut self) -> Found {
        let events = self.log.lock();
        let found = events.find(self.next);
        let oldest = events.oldest;
        drop(events);
        self.advance(&found, oldest);
        found
    }

    /// The next result; waits for an event at most `patience`.
    pub(crate) fn wait(&mut self, patience: Duration) -> Found {
        let next = self.next;
        let events = self.log.lock();
        let (events, _) = self
            .log
            .0
            .more
            .wait_timeout_while(events, patience, |events| {
                events.find(next) == Found::Nothing
            })
            .unwrap_or_else(PoisonError::into_inner);
        let found = events.find(next);
        let oldest = events.oldest;
        drop(events);
        self.advance(&found, oldest);
        found
    }

    fn advance(&mut self, found: &Found, oldest: u64) {
        match found {
            Found::Event(number, _) => self.next = number.saturating_add(1),
            Found::Missed(_) => self.next = oldest,
            Found::Nothing | Found::End => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(reader: &mut Reader) -> Vec<String> {
        let mut names = Vec::new();
        loop {
            match reader.poll() {
                Found::Event(_, line) => names.push(line.record().unwrap().event),
                Found::Missed(count) => names.push(format!("missed {count}")),
                Found::Nothing | Found::End => return names,
            }
        }
    }

    #[test]
    fn readers_are_independent() {
        let log = EventLog::new();
        let mut early = log.reader();
        log.publish(&Event::VmBooting);
        let mut late = log.reader();
        log.publish(&Event::VmBooted);
        assert_eq!(names(&mut late), ["booted"]);
        assert_eq!(names(&mut early), ["booting", "booted"]);
        assert_eq!(names(&mut log.reader_from(0)), ["booting", "booted"]);
    }

    #[test]
    fn an_event_is_formatted_as_one_line() {
        let record = Record {
            timestamp: Duration::ZERO,
            source: "host".into(),
            event: "drift".into(),
            properties: Some(BTreeMap::from([
                ("port".into(), "0000:00:04.0".into()),
                ("what".into(), "its ACS is 0000".into()),
            ])),
        };
        let line = "event: host drift port=0000:00:04.0 what=its ACS is 0000";
        assert_eq!(format_line(&record), line);
    }

    #[test]
    fn a_slow_reader_gets_the_number_of_missed_events() {
        let log = EventLog::new();
        let mut reader = log.reader();
        for _ in 0..KEPT + 3 {
            log.publish(&Event::VmPaused);
        }
        assert_eq!(reader.poll(), Found::Missed(3));
        assert_eq!(names(&mut reader).len(), KEPT);
    }

    #[test]
    fn waiting_ends_when_the_log_closes_or_time_is_up() {
        let log = EventLog::new();
        let mut reader = log.reader();
        assert_eq!(reader.wait(Duration::from_millis(1)), Found::Nothing);
        let other = log.clone();
        let closer = std::thread::spawn(move || other.close());
        assert_eq!(reader.wait(Duration::from_secs(60)), Found::End);
        closer.join().unwrap();
    }
}
