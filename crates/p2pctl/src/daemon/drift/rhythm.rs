//! When the host is looked at, and at how much of it.
//!
//! ```text
//! something came or went ── quiet for a while, or long enough ──▶ the whole host
//! a change of our own ended ────────────────────────────────────▶ the whole host
//! some time has passed ─────────────────────────────────────────▶ the words of the ports that matter
//!                          (the whole host, if the kernel does not tell what comes and goes)
//! ```

use std::time::Duration;

/// How often the words are looked at. What is wrong with them shall be known and answered within a second.
const PERIOD: Duration = Duration::from_millis(500);

/// What comes and goes does so in numbers: it is looked at when nothing has for this long …
const QUIET: Duration = Duration::from_millis(50);

/// … or has not stopped to for this long.
const STORM: Duration = Duration::from_millis(400);

/// How often to see whether a change of our own has ended.
const BUSY: Duration = Duration::from_millis(50);

/// How much is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    Nothing,
    /// The ACS control registers of the ports that matter.
    Words,
    Whole,
}

/// What is known at a moment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    /// Since some time in the past.
    pub(super) now: Duration,
    /// Whether a change of our own is under way.
    pub(super) busy: bool,
    /// How many have begun.
    pub(super) changes: u64,
}

/// What there was up to now.
#[derive(Debug)]
pub(super) struct Rhythm {
    /// Whether the kernel tells what comes and goes.
    told: bool,
    /// The first and the last news that was not looked at.
    news: Option<(Duration, Duration)>,
    /// When something was looked at last.
    looked: Duration,
    /// How many changes of our own had begun when the whole was looked at last; none if it never was.
    changes: Option<u64>,
}

impl Rhythm {
    pub(super) fn new(told: bool) -> Self {
        Self {
            told,
            news: None,
            looked: Duration::ZERO,
            changes: None,
        }
    }

    /// From now on the kernel tells nothing.
    pub(super) fn deafen(&mut self) {
        self.told = false;
    }

    /// Something came or went.
    pub(super) fn news(&mut self, now: Duration) {
        let first = self.news.map_or(now, |(first, _)| first);
        self.news = Some((first, now));
    }

    /// What to look at.
    pub(super) fn look(&self, at: Moment) -> Look {
        if at.busy {
            return Look::Nothing;
        }
        let passed = |since: Duration| at.now.saturating_sub(since);
        let settled = self
            .news
            .is_some_and(|(first, last)| passed(last) >= QUIET || passed(first) >= STORM);
        if settled || self.changes != Some(at.changes) {
            return Look::Whole;
        }
        match passed(self.looked) >= PERIOD {
            true if self.told => Look::Words,
            true => Look::Whole,
            false => Look::Nothing,
        }
    }

    /// That was looked at, beginning at this moment.
    pub(super) fn looked(&mut self, look: Look, at: Moment) {
        match look {
            Look::Nothing => return,
            Look::Words => {}
            Look::Whole => {
                self.news = None;
                self.changes = Some(at.changes);
            }
        }
        self.looked = at.now;
    }

    /// How long there is nothing to do unless there are news.
    pub(super) fn rest(&self, at: Moment) -> Duration {
        if at.busy {
            return BUSY;
        }
        let until = |due: Duration| due.saturating_sub(at.now);
        let period = until(self.looked + PERIOD);
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
            changes: 0,
        }
    }

    /// One that has looked at the whole at the beginning.
    fn rhythm(told: bool) -> Rhythm {
        let mut rhythm = Rhythm::new(told);
        assert_eq!(rhythm.look(at(0)), Look::Whole);
        rhythm.looked(Look::Whole, at(0));
        rhythm
    }

    #[test]
    fn on_a_quiet_host_only_the_words_are_looked_at() {
        let mut rhythm = rhythm(true);
        assert_eq!(rhythm.look(at(499)), Look::Nothing);
        assert_eq!(rhythm.rest(at(100)), Duration::from_millis(400));
        for ms in (500..10_000).step_by(500) {
            assert_eq!(rhythm.look(at(ms)), Look::Words);
            rhythm.looked(Look::Words, at(ms));
        }
    }

    #[test]
    fn a_kernel_that_does_not_tell_is_looked_at_as_a_whole() {
        let mut rhythm = rhythm(true);
        rhythm.deafen();
        assert_eq!(rhythm.look(at(499)), Look::Nothing);
        assert_eq!(rhythm.look(at(500)), Look::Whole);
        assert_eq!(Rhythm::new(false).look(at(500)), Look::Whole);
    }

    #[test]
    fn news_are_looked_at_once_when_there_are_no_more() {
        let mut rhythm = rhythm(true);
        rhythm.news(at(100).now);
        rhythm.news(at(130).now);
        assert_eq!(rhythm.rest(at(130)), QUIET);
        assert_eq!(rhythm.look(at(179)), Look::Nothing);
        assert_eq!(rhythm.look(at(180)), Look::Whole);
        rhythm.looked(Look::Whole, at(180));
        assert_eq!(rhythm.look(at(300)), Look::Nothing);
    }

    #[test]
    fn a_storm_of_news_does_not_put_it_off_for_ever() {
        let mut rhythm = rhythm(true);
        for ms in (100..500).step_by(20) {
            rhythm.news(at(ms).now);
            assert_eq!(rhythm.look(at(ms)), Look::Nothing, "{ms}");
        }
        assert_eq!(rhythm.rest(at(490)), Duration::from_millis(10));
        assert_eq!(rhythm.look(at(500)), Look::Whole);
    }

    #[test]
    fn looking_at_the_words_does_not_forget_news() {
        let mut rhythm = rhythm(true);
        rhythm.news(at(490).now);
        assert_eq!(rhythm.look(at(500)), Look::Words);
        rhythm.looked(Look::Words, at(500));
        assert_eq!(rhythm.look(at(540)), Look::Whole);
    }

    #[test]
    fn what_a_change_of_our_own_does_is_no_news_and_its_end_is_looked_at() {
        let mut rhythm = rhythm(true);
        let during = |ms| Moment {
            busy: true,
            changes: 1,
            ..at(ms)
        };
        rhythm.news(at(600).now);
        assert_eq!(rhythm.look(during(2000)), Look::Nothing);
        assert_eq!(rhythm.rest(during(2000)), BUSY);
        let after = Moment {
            changes: 1,
            ..at(2050)
        };
        assert_eq!(rhythm.look(after), Look::Whole);
        rhythm.looked(Look::Whole, after);
        let later = Moment {
            changes: 1,
            ..at(2100)
        };
        assert_eq!(rhythm.look(later), Look::Nothing);
    }
}
