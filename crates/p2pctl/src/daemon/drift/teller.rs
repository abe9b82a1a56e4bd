//! Events, no more of them than somebody can read.

use std::time::{Duration, Instant};

use hotplug::EventLog;

/// Events that may come at once …
const BURST: u32 = 40;

/// … and how long it takes until there may be one more.
const REFILL: Duration = Duration::from_secs(5);

/// Who tells events. What recurs without end is told from time to time, with a count of what was left out.
pub(super) struct Teller {
    events: EventLog,
    left: u32,
    refilled: Instant,
    suppressed: u64,
}

impl Teller {
    pub(super) fn new(events: EventLog) -> Self {
        Self {
            events,
            left: BURST,
            refilled: Instant::now(),
            suppressed: 0,
        }
    }

    pub(super) fn tell(&mut self, event: &str, properties: &[(&str, &str)]) {
        if !self.may_tell(Instant::now()) {
            return;
        }
        let properties = properties.iter();
        let properties = properties.map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        let suppressed = std::mem::take(&mut self.suppressed);
        let count = (suppressed > 0).then(|| ("suppressed".to_owned(), suppressed.to_string()));
        self.events
            .note("host", event, properties.chain(count).collect());
    }

    fn may_tell(&mut self, now: Instant) -> bool {
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
        let mut teller = Teller::new(EventLog::new());
        let start = Instant::now();
        let told = |teller: &mut Teller, at: Duration| -> usize {
            (0..1000).filter(|_| teller.may_tell(start + at)).count()
        };
        assert_eq!(told(&mut teller, Duration::ZERO), 40);
        assert_eq!(teller.suppressed, 960);
        assert_eq!(told(&mut teller, REFILL * 3), 3);
        assert_eq!(told(&mut teller, REFILL * 1000), 40);
    }
}
