//! Rate-limited events. A thread writes them, because writing to the log may block.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::io;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use vmm_api::EventLog;

/// Number of events that may come at once.
const BURST: u32 = 40;

/// Time until another event may come.
const REFILL: Duration = Duration::from_secs(5);

/// Length of the event queue.
const QUEUE: usize = 256;

/// An event to report, with its properties.
pub(super) type DriftEvent = (String, BTreeMap<String, String>);

/// Starts the thread that writes events. It ends when all senders are dropped.
pub(super) fn start(events: EventLog) -> io::Result<SyncSender<DriftEvent>> {
    let (sender, receiver) = sync_channel::<DriftEvent>(QUEUE);
    let thread = thread::Builder::new().name("drift-events".to_owned());
    thread.spawn(move || {
        for (event, properties) in receiver {
            events.note("host", &event, properties);
        }
    })?;
    Ok(sender)
}

/// Reports events without blocking. Recurring events are reported at a limited rate, with a count of the suppressed
/// ones.
pub(super) struct Emitter {
    to: SyncSender<DriftEvent>,
    left: u32,
    refilled: Instant,
    suppressed: u64,
}

impl Emitter {
    pub(super) fn new(to: SyncSender<DriftEvent>) -> Self {
        Self {
            to,
            left: BURST,
            refilled: Instant::now(),
            suppressed: 0,
        }
    }

    pub(super) fn emit(&mut self, event: &str, properties: &[(&str, &dyn Display)]) {
        if !self.may_emit(Instant::now()) {
            return;
        }
        let properties = properties.iter();
        let properties = properties.map(|(key, value)| ((*key).to_owned(), value.to_string()));
        let suppressed = self.suppressed;
        let count = (suppressed > 0).then(|| ("suppressed".to_owned(), suppressed.to_string()));
        let drift_event = (event.to_owned(), properties.chain(count).collect());
        self.suppressed = match self.to.try_send(drift_event) {
            Ok(()) => 0,
            Err(_) => suppressed.saturating_add(1),
        };
    }

    fn may_emit(&mut self, now: Instant) -> bool {
        while self.left < BURST && now.saturating_duration_since(self.refilled) >= REFILL {
            self.left = self.left.saturating_add(1);
            self.refilled += REFILL;
        }
        if self.left == BURST {
            self.refilled = now;
        }
        let Some(left) = self.left.checked_sub(1) else {
            self.suppressed = self.suppressed.saturating_add(1);
            return false;
        };
        self.left = left;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_recurs_without_end_is_told_from_time_to_time() {
        let (sender, _receiver) = sync_channel(QUEUE);
        let mut emitter = Emitter::new(sender);
        let start = Instant::now();
        let emitted = |emitter: &mut Emitter, at: Duration| -> usize {
            (0..1000).filter(|_| emitter.may_emit(start + at)).count()
        };
        assert_eq!(emitted(&mut emitter, Duration::ZERO), 40);
        assert_eq!(emitter.suppressed, 960);
        assert_eq!(emitted(&mut emitter, REFILL * 3), 3);
        assert_eq!(emitted(&mut emitter, REFILL * 1000), 40);
    }

    #[test]
    fn nobody_waits_for_a_log_that_is_not_read() {
        let (sender, receiver) = sync_channel(2);
        let mut emitter = Emitter::new(sender);
        for _ in 0..5 {
            emitter.emit("drift", &[("function", &"0000:03:00.0")]);
        }
        assert_eq!(emitter.suppressed, 3);
        assert_eq!(receiver.try_iter().count(), 2);
        emitter.emit("drift", &[]);
        let (event, properties) = receiver.recv().unwrap();
        assert_eq!(
            (event.as_str(), properties["suppressed"].as_str()),
            ("drift", "3")
        );
    }
}
