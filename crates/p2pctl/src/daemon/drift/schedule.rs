//! When the whole host is scanned.
//!
//! ```text
//! a uevent ── quiet for a while, or long enough ──▶ scan
//! a transaction of the daemon ended ──────────────▶ scan
//! some time has passed ───────────────────────────▶ scan, if uevents are not available
//! ```

use std::time::Duration;

/// Interval of scans without uevents, and the longest rest.
const PERIOD: Duration = Duration::from_millis(500);

/// Uevents come in bursts. A scan starts when none has come for this long.
const QUIET: Duration = Duration::from_millis(50);

/// A scan also starts when a burst has lasted this long.
const STORM: Duration = Duration::from_millis(400);

/// Interval of checks whether a transaction has ended.
const BUSY: Duration = Duration::from_millis(50);

/// Inputs of a decision.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    /// Time since a fixed moment in the past.
    pub(super) now: Duration,
    /// Whether a transaction is running.
    pub(super) busy: bool,
    /// How many transactions have started.
    pub(super) transactions: u64,
}

/// State between decisions.
#[derive(Debug)]
pub(super) struct Schedule {
    /// Whether uevents are available.
    has_uevents: bool,
    /// The first and the last event since the last scan.
    news: Option<(Duration, Duration)>,
    /// Time of the last scan.
    scanned: Duration,
    /// The transaction count at the last scan; `None` before the first.
    transactions: Option<u64>,
}

impl Schedule {
    pub(super) fn new(has_uevents: bool) -> Self {
        Self {
            has_uevents,
            news: None,
            scanned: Duration::ZERO,
            transactions: None,
        }
    }

    /// Switches to polling.
    pub(super) fn poll(&mut self) {
        self.has_uevents = false;
    }

    /// Records an event.
    pub(super) fn news(&mut self, now: Duration) {
        let first = self.news.map_or(now, |(first, _)| first);
        self.news = Some((first, now));
    }

    /// Whether to scan now.
    pub(super) fn is_due(&self, at: Moment) -> bool {
        if at.busy {
            return false;
        }
        let passed = |since: Duration| at.now.saturating_sub(since);
        let settled = self
            .news
            .is_some_and(|(first, last)| passed(last) >= QUIET || passed(first) >= STORM);
        settled
            || self.transactions != Some(at.transactions)
            || (!self.has_uevents && passed(self.scanned) >= PERIOD)
    }

    /// Records a scan that starts at this moment.
    pub(super) fn scanned(&mut self, at: Moment) {
        self.news = None;
        self.transactions = Some(at.transactions);
        self.scanned = at.now;
    }

    /// How long to rest if no event comes.
    pub(super) fn rest(&self, at: Moment) -> Duration {
        if at.busy {
            return BUSY;
        }
        let until = |due: Duration| due.saturating_sub(at.now);
        let period = if self.has_uevents {
            PERIOD
        } else {
            until(self.scanned + PERIOD)
        };
        match self.news {
            Some((first, last)) => period.min(until((last + QUIET).min(first + STORM))),
            None => period,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Moment {
        Moment {
            now: Duration::from_millis(ms),
            busy: false,
            transactions: 0,
        }
    }

    /// A schedule after the first scan.
    fn schedule(has_uevents: bool) -> Schedule {
        let mut schedule = Schedule::new(has_uevents);
        assert!(schedule.is_due(at(0)));
        schedule.scanned(at(0));
        schedule
    }

    #[test]
    fn a_quiet_host_is_not_looked_at() {
        let schedule = schedule(true);
        assert!(!schedule.is_due(at(100_000)));
        assert_eq!(schedule.rest(at(100_000)), PERIOD);
    }

    #[test]
    fn without_the_kernels_events_it_is_looked_at_twice_a_second() {
        let mut schedule = schedule(true);
        schedule.poll();
        assert!(!schedule.is_due(at(499)));
        assert_eq!(schedule.rest(at(100)), Duration::from_millis(400));
        assert!(schedule.is_due(at(500)));
        assert!(Schedule::new(false).is_due(at(500)));
    }

    #[test]
    fn news_are_looked_at_once_when_there_are_no_more() {
        let mut schedule = schedule(true);
        schedule.news(at(100).now);
        schedule.news(at(130).now);
        assert_eq!(schedule.rest(at(130)), QUIET);
        assert!(!schedule.is_due(at(179)));
        assert!(schedule.is_due(at(180)));
        schedule.scanned(at(180));
        assert!(!schedule.is_due(at(300)));
    }

    #[test]
    fn a_storm_of_news_does_not_put_it_off_for_ever() {
        let mut schedule = schedule(true);
        for ms in (100..500).step_by(20) {
            schedule.news(at(ms).now);
            assert!(!schedule.is_due(at(ms)), "{ms}");
        }
        assert_eq!(schedule.rest(at(490)), Duration::from_millis(10));
        assert!(schedule.is_due(at(500)));
    }

    #[test]
    fn what_a_change_of_our_own_does_is_no_news_and_its_end_is_looked_at() {
        let mut schedule = schedule(true);
        let during = |ms| Moment {
            busy: true,
            transactions: 1,
            ..at(ms)
        };
        schedule.news(at(600).now);
        assert!(!schedule.is_due(during(2000)));
        assert_eq!(schedule.rest(during(2000)), BUSY);
        let after = |ms| Moment {
            transactions: 1,
            ..at(ms)
        };
        assert!(schedule.is_due(after(2050)));
        schedule.scanned(after(2050));
        assert!(!schedule.is_due(after(2100)));
    }
}
