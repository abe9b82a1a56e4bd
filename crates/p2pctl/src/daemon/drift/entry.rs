//! What a worker knows of one device that drift concerns.

use std::time::{Duration, Instant};

use hotplug::regroup::{DeviceFacts, PeerMappings, VmDevice};

use super::response::{Action, Event, State};
use super::snapshot::Snapshot;

/// How long the first of a row of requests is waited for …
pub(super) const PATIENCE: Duration = Duration::from_millis(500);

/// … and the later ones. One that waits is answered as soon as the VMM answers at all, and each that is given up leaves
/// a connection for the VMM to clear.
const LONGEST: Duration = Duration::from_secs(16);

/// How long to wait after a request that failed.
pub(super) const AGAIN: Duration = Duration::from_millis(250);

/// How long a guest that keeps a device is left alone before it is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(120);

/// How long it is remembered that a device was closed.
const MEMORY: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) device: VmDevice,
    /// What it depends on, as it was when it was open.
    pub(super) good: DeviceFacts,
    /// A VMM or a transaction has decided about the device since: what it depends on now is good.
    pub(super) rebase: bool,
    pub(super) state: State,
    pub(super) why: String,
    /// How many transactions were over when the good facts were taken.
    pub(super) transactions: u64,
    /// Actions that have not ended.
    pub(super) in_flight: Vec<Action>,
    /// When there is something to do.
    pub(super) due: Instant,
    /// Attempts in vain, by which the next one is put off.
    tries: u32,
    /// How the VMM closed it.
    pub(super) closed: Option<PeerMappings>,
    /// What was told of it last, which is not told again.
    told: String,
    /// When it came into its state.
    since: Instant,
    /// How often it was closed of late.
    strikes: u32,
}

/// Doubles a time, so often, up to a limit.
pub(super) fn backoff(first: Duration, times: u32, limit: Duration) -> Duration {
    let factor = 2_u32.saturating_pow(times.min(16));
    first.saturating_mul(factor).min(limit)
}

pub(super) fn patience(attempts: u32) -> Duration {
    backoff(PATIENCE, attempts, LONGEST)
}

impl Entry {
    pub(super) fn new(device: VmDevice, transactions: u64, now: Instant) -> Self {
        Self {
            device,
            good: DeviceFacts::default(),
            rebase: false,
            state: State::Open,
            why: String::new(),
            transactions,
            in_flight: Vec::new(),
            due: now,
            tries: 0,
            closed: None,
            told: String::new(),
            since: now,
            strikes: 0,
        }
    }

    /// One that a daemon before this one has taken from the VM; whether the VM has it all the same.
    pub(super) fn recovered(
        device: VmDevice,
        good: DeviceFacts,
        is_there: bool,
        transactions: u64,
        now: Instant,
    ) -> Self {
        Self {
            good,
            state: if is_there { State::Kept } else { State::Away },
            why: "it was taken away before this daemon was started".to_owned(),
            ..Self::new(device, transactions, now)
        }
    }

    /// Something that the device depends on changed; before that it was like this.
    pub(super) fn drift(
        &mut self,
        before: &Snapshot,
        why: String,
        transactions: u64,
        now: Instant,
    ) {
        if self.state == State::Open {
            self.good = before.facts(self.device.function).unwrap_or_default();
            self.rebase = false;
            self.transactions = transactions;
            self.closed = None;
            self.strikes = self.strikes.saturating_add(1);
        }
        self.why = why;
        self.step(Event::Drift, now);
    }

    /// Goes on to the next state.
    pub(super) fn step(&mut self, event: Event, now: Instant) {
        const LATER: Duration = Duration::from_secs(1);
        const CALM: Duration = Duration::from_secs(30);
        let next = self.state.next(event);
        if event == Event::Present && self.state == State::Away && next != self.state {
            self.rebase = true;
        }
        if next == self.state {
            return;
        }
        let (from, to) = (self.state, next);
        // What cannot succeed at once goes on being tried less and less often.
        let failed = matches!((from, to), (State::Returning { .. }, State::Away));
        let again = matches!((from, to), (State::Away, State::Returning { .. }));
        if !failed && !again {
            self.tries = 0;
        }
        self.due = match (from, to) {
            // What is on its way to the VMM is carried out within this time.
            (State::Closing { twice: true }, State::Closing { .. }) => now + LATER,
            // What changes all the time is not opened all the time.
            (State::Closing { .. }, State::Closed) if self.strikes > 1 => {
                now + backoff(LATER, self.strikes - 2, CALM)
            }
            _ => now,
        };
        self.state = next;
        self.since = now;
        self.told.clear();
        if failed {
            self.put_off(now);
        }
    }

    /// The next attempt is later, and later each time.
    pub(super) fn put_off(&mut self, now: Instant) {
        const FIRST: Duration = Duration::from_secs(1);
        const LIMIT: Duration = Duration::from_secs(10);
        self.due = now + backoff(FIRST, self.tries, LIMIT);
        self.tries = self.tries.saturating_add(1);
    }

    /// A request has failed, or had no answer: it is made again soon, and waited for longer.
    pub(super) fn retry(&mut self, now: Instant) {
        self.due = now + AGAIN;
        self.tries = self.tries.saturating_add(1);
    }

    pub(super) fn tries(&self) -> u32 {
        self.tries
    }

    /// Whether this was not told since the device is in its state.
    pub(super) fn is_news(&mut self, event: &str) -> bool {
        let news = self.told != event;
        event.clone_into(&mut self.told);
        news
    }

    /// What there is to begin now. No two actions that contradict each other are under way, but a mapping is closed
    /// whatever else is.
    pub(super) fn begins(&self, is_busy: bool, now: Instant) -> Option<Action> {
        let action = self.state.action();
        let may = match action {
            Action::Nothing | Action::Check => false,
            Action::Revoke => !self.in_flight.contains(&action),
            Action::Reopen | Action::Unplug | Action::Plug => {
                !is_busy
                    && self.in_flight.iter().all(|other| *other == Action::Revoke)
                    && !self.in_flight.contains(&action)
            }
        };
        (may && now >= self.due).then_some(action)
    }

    pub(super) fn is_over(&self, now: Instant) -> bool {
        let idle = self.in_flight.is_empty();
        match self.state {
            State::Forgotten => idle,
            State::Open => idle && now.saturating_duration_since(self.since) >= MEMORY,
            _ => false,
        }
    }

    pub(super) fn is_at_rest(&self) -> bool {
        matches!(self.state, State::Open | State::Forgotten) && self.in_flight.is_empty()
    }

    /// Whether the guest was asked to let go of it, and it has not been checked since.
    pub(super) fn is_withheld(&self) -> bool {
        matches!(
            self.state,
            State::Leaving | State::Kept | State::Away | State::Returning { .. }
        )
    }

    /// Whether the guest has kept the device for long enough to be asked again.
    pub(super) fn is_to_be_asked_again(&self, now: Instant) -> bool {
        self.state == State::Kept && now.saturating_duration_since(self.since) >= ASK_AGAIN
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn entry(now: Instant) -> Entry {
        let device = VmDevice {
            vm: "web".to_owned(),
            id: "nvme0".to_owned(),
            function: "0000:03:00.0".parse().unwrap(),
            p2p: true,
            domain: None,
            expose: BTreeSet::new(),
            slot: None,
        };
        Entry::new(device, 0, now)
    }

    fn at(state: State, now: Instant) -> Entry {
        Entry {
            state,
            ..entry(now)
        }
    }

    #[test]
    fn a_mapping_is_closed_whatever_else_is_under_way_and_nothing_else_is_begun_then() {
        let now = Instant::now();
        let mut entry = at(State::Closing { twice: true }, now);
        entry.in_flight = vec![Action::Reopen];
        assert_eq!(entry.begins(true, now), Some(Action::Revoke));
        entry.in_flight.push(Action::Revoke);
        assert_eq!(entry.begins(false, now), None);
        for state in [
            State::Opening,
            State::Leaving,
            State::Returning { stale: false },
        ] {
            let mut entry = at(state, now);
            assert_eq!(entry.begins(false, now), Some(state.action()));
            assert_eq!(entry.begins(true, now), None, "a transaction is under way");
            entry.in_flight = vec![Action::Unplug];
            assert_eq!(entry.begins(false, now), None, "{state:?}");
        }
    }

    #[test]
    fn what_changes_all_the_time_is_checked_less_and_less_often() {
        let now = Instant::now();
        let mut entry = entry(now);
        let mut waits = Vec::new();
        for _ in 0..8 {
            entry.drift(&Snapshot::default(), String::new(), 0, now);
            entry.step(Event::Done, now);
            waits.push((entry.due - now).as_secs());
            entry.step(Event::Same, now);
            entry.step(Event::Done, now);
        }
        assert_eq!(waits, [0, 1, 2, 4, 8, 16, 30, 30]);
    }

    #[test]
    fn attempts_in_vain_are_put_off_and_no_attempt_is_waited_for_without_end() {
        let now = Instant::now();
        let mut entry = at(State::Away, now);
        let mut waits = Vec::new();
        for _ in 0..6 {
            entry.step(Event::Same, now);
            entry.step(Event::Failed, now);
            waits.push((entry.due - now).as_secs());
        }
        assert_eq!(waits, [1, 2, 4, 8, 10, 10]);
        assert_eq!(patience(0), PATIENCE);
        assert_eq!(patience(u32::MAX), LONGEST);
    }
}
