//! State of one device that is affected by drift.

use std::time::{Duration, Instant};

use hotplug::regroup::{DeviceFacts, PeerMappings, VmDevice};

use super::response::{Action, Event, State};
use super::snapshot::Snapshot;

/// Timeout of the first in a row of requests.
pub(super) const PATIENCE: Duration = Duration::from_millis(500);

/// Limit of the timeout of later requests. A pending request is answered as soon as the VMM answers at all, and each
/// abandoned request leaves a connection that the VMM must clean up.
const LONGEST: Duration = Duration::from_secs(16);

/// Delay after a failed request.
pub(super) const AGAIN: Duration = Duration::from_millis(250);

/// Delay before a guest that keeps a device is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(120);

/// How long an entry is kept after the device was reopened.
const MEMORY: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) device: VmDevice,
    /// The state that the device depended on when it was last open.
    pub(super) good: DeviceFacts,
    /// Whether a VMM or a transaction has since approved the device, so that the current state is the new reference.
    pub(super) rebase: bool,
    pub(super) state: State,
    pub(super) why: String,
    /// The number of completed transactions when `good` was recorded.
    pub(super) transactions: u64,
    /// Actions that are running.
    pub(super) in_flight: Vec<Action>,
    /// Time of the next action.
    pub(super) due: Instant,
    /// Failed attempts in a row; they delay the next one.
    tries: u32,
    /// How the VMM closed the mappings.
    pub(super) closed: Option<PeerMappings>,
    /// The last event that was reported; it is not repeated.
    reported: String,
    /// When the current state was entered.
    since: Instant,
    /// How often the device was closed recently.
    strikes: u32,
}

/// Doubles a duration this number of times, up to a limit.
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
            reported: String::new(),
            since: now,
            strikes: 0,
        }
    }

    /// An entry for a device that an earlier daemon took from the VM. The VM may have the device anyway.
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
            why: "an earlier daemon unplugged it".to_owned(),
            ..Self::new(device, transactions, now)
        }
    }

    /// Records that something the device depends on changed. `before` is the host before the change.
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

    /// Enters the next state.
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
        // Attempts that fail repeatedly are made less and less often.
        let failed = matches!((from, to), (State::Returning { .. }, State::Away));
        let again = matches!((from, to), (State::Away, State::Returning { .. }));
        if !failed && !again {
            self.tries = 0;
        }
        self.due = match (from, to) {
            // Requests that are under way to the VMM are carried out within this time.
            (State::Closing { twice: true }, State::Closing { .. }) => now + LATER,
            // Mappings are reopened less often while the host keeps changing.
            (State::Closing { .. }, State::Closed) if self.strikes > 1 => {
                now + backoff(LATER, self.strikes - 2, CALM)
            }
            _ => now,
        };
        self.state = next;
        self.since = now;
        self.reported.clear();
        if failed {
            self.put_off(now);
        }
    }

    /// Delays the next attempt, longer each time.
    pub(super) fn put_off(&mut self, now: Instant) {
        const FIRST: Duration = Duration::from_secs(1);
        const LIMIT: Duration = Duration::from_secs(10);
        self.due = now + backoff(FIRST, self.tries, LIMIT);
        self.tries = self.tries.saturating_add(1);
    }

    /// A request failed or timed out: repeats it soon, with a longer timeout.
    pub(super) fn retry(&mut self, now: Instant) {
        self.due = now + AGAIN;
        self.tries = self.tries.saturating_add(1);
    }

    pub(super) fn tries(&self) -> u32 {
        self.tries
    }

    /// Whether this event has not been reported in the current state.
    pub(super) fn is_new(&mut self, event: &str) -> bool {
        let news = self.reported != event;
        event.clone_into(&mut self.reported);
        news
    }

    /// The action to start now. Contradicting actions never run at the same time, except that mappings are always
    /// closed at once.
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

    /// Whether the device is kept from the guest until a host check succeeds.
    pub(super) fn is_withheld(&self) -> bool {
        matches!(
            self.state,
            State::Leaving | State::Kept | State::Away | State::Returning { .. }
        )
    }

    /// Whether the guest has kept the device long enough to be asked again.
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
