//! State machine of a transaction: it determines the next step, in live use and in replay of the journal.
//!
//! ```text
//!            Started, Succeeded …           all done
//! forward ──────────────────────────────▶ finish new
//!    │ Failed; Resumed before the commit
//!    ▼
//!  undo ──▶ back: UndoStarted, Undone | UndoFailed … ──▶ undo, up to ROUNDS times ──▶ finish old
//!
//! Resumed after another boot, wherever it was ──▶ finish rebooted
//! ```

use super::record::{Begin, Outcome, Record};

/// Largest number of undo rounds.
pub(super) const ROUNDS: usize = 5;

/// The next step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// Do this action.
    Do(usize),
    /// Compare the host with the snapshot and begin an undo round.
    Undo(Round),
    /// Do this action of the undo round.
    UndoStep(usize),
    /// Write the end record.
    Finish(Outcome),
    /// Nothing.
    Ended,
}

/// An undo round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Round {
    /// Number of the round, from 0.
    pub(super) number: usize,
    /// Whether this is the last round.
    pub(super) last: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Phase {
    /// Actions before `next` were done. If `next` was started and has no result, it is unknown whether it was done.
    Forward {
        next: usize,
        started: bool,
    },
    /// An action failed, or its result is unknown.
    Turning,
    /// In an undo round with `count` actions.
    Back {
        next: usize,
        count: usize,
    },
    Ended,
}

/// The state of a transaction.
#[derive(Debug, Clone)]
pub(super) struct SagaState {
    count: usize,
    commit: usize,
    boot: String,
    rounds: usize,
    rebooted: bool,
    phase: Phase,
}

/// A record that does not fit the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the record is invalid after the records before it")]
pub(super) struct InvalidRecord;

impl SagaState {
    pub(super) fn new(begin: &Begin) -> Self {
        Self {
            count: begin.actions.len(),
            commit: begin.commit,
            boot: begin.boot.clone(),
            rounds: 0,
            rebooted: false,
            phase: Phase::Forward {
                next: 0,
                started: false,
            },
        }
    }

    /// The next step.
    pub(super) fn next(&self) -> Next {
        if self.rebooted && self.phase != Phase::Ended {
            return Next::Finish(Outcome::Rebooted);
        }
        let undo = || {
            if self.rounds < ROUNDS {
                Next::Undo(Round {
                    number: self.rounds,
                    last: self.rounds + 1 == ROUNDS,
                })
            } else {
                Next::Finish(Outcome::Old)
            }
        };
        match &self.phase {
            Phase::Forward { next, .. } if *next < self.count => Next::Do(*next),
            Phase::Forward { .. } => Next::Finish(Outcome::New),
            Phase::Turning => undo(),
            Phase::Back { next, count } if next < count => Next::UndoStep(*next),
            Phase::Back { .. } => undo(),
            Phase::Ended => Next::Ended,
        }
    }

    /// Whether recovery continues the transaction instead of undoing it.
    pub(super) fn is_committed(&self) -> bool {
        matches!(self.phase, Phase::Forward { next, .. } if next >= self.commit)
    }

    /// Applies a record.
    pub(super) fn take(&mut self, record: &Record) -> Result<(), InvalidRecord> {
        self.phase = match (&self.phase, record) {
            (
                Phase::Forward {
                    next,
                    started: false,
                },
                Record::Started { action },
            ) if next == action && *action < self.count => Phase::Forward {
                next: *next,
                started: true,
            },
            (
                Phase::Forward {
                    next,
                    started: true,
                },
                Record::Succeeded { action },
            ) if next == action => Phase::Forward {
                next: next + 1,
                started: false,
            },
            (
                Phase::Forward {
                    next,
                    started: true,
                },
                Record::Failed { action, .. },
            ) if next == action => Phase::Turning,
            (Phase::Turning, Record::Undo { actions }) => self.round(actions.len()),
            (Phase::Back { next, count }, Record::Undo { actions }) if next >= count => {
                self.round(actions.len())
            }
            (Phase::Back { next, count }, Record::UndoStarted { action })
                if next == action && next < count =>
            {
                self.phase.clone()
            }
            (
                Phase::Back { next, count },
                Record::Undone { action } | Record::UndoFailed { action, .. },
            ) if next == action && next < count => Phase::Back {
                next: next + 1,
                count: *count,
            },
            (phase, Record::Resumed { boot }) if *phase != Phase::Ended => {
                self.rebooted |= *boot != self.boot;
                match phase {
                    // The actions after the commit are idempotent: repeat the interrupted one.
                    Phase::Forward { next, .. } if *next >= self.commit => Phase::Forward {
                        next: *next,
                        started: false,
                    },
                    _ => {
                        self.rounds = 0;
                        Phase::Turning
                    }
                }
            }
            (phase, Record::End { .. }) if *phase != Phase::Ended => Phase::Ended,
            _ => return Err(InvalidRecord),
        };
        Ok(())
    }

    fn round(&mut self, count: usize) -> Phase {
        self.rounds += 1;
        Phase::Back { next: 0, count }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> SagaState {
        SagaState {
            count: 4,
            commit: 3,
            boot: "first".to_owned(),
            rounds: 0,
            rebooted: false,
            phase: Phase::Forward {
                next: 0,
                started: false,
            },
        }
    }

    fn started(action: usize) -> Record {
        Record::Started { action }
    }

    fn succeeded(action: usize) -> Record {
        Record::Succeeded { action }
    }

    fn failed(action: usize) -> Record {
        Record::Failed {
            action,
            error: String::new(),
        }
    }

    fn resumed(boot: &str) -> Record {
        Record::Resumed {
            boot: boot.to_owned(),
        }
    }

    fn undo(count: usize) -> Record {
        let action = super::super::action::Action::Autoprobe { on: true };
        Record::Undo {
            actions: vec![action; count],
        }
    }

    fn end() -> Record {
        Record::End {
            outcome: Outcome::Old,
            remains: Vec::new(),
        }
    }

    /// The state after these records.
    fn after(records: &[Record]) -> SagaState {
        let mut state = state();
        for record in records {
            state.take(record).unwrap();
        }
        state
    }

    fn round(number: usize) -> Next {
        Next::Undo(Round {
            number,
            last: number + 1 == ROUNDS,
        })
    }

    #[test]
    fn actions_are_done_in_order() {
        let mut records = Vec::new();
        for action in 0..4 {
            assert_eq!(after(&records).next(), Next::Do(action));
            records.extend([started(action), succeeded(action)]);
        }
        assert_eq!(after(&records).next(), Next::Finish(Outcome::New));
        records.push(end());
        assert_eq!(after(&records).next(), Next::Ended);
    }

    #[test]
    fn recovery_undoes_before_the_commit_and_continues_after_it() {
        let mut records = Vec::new();
        for action in 0..4 {
            for begun in [false, true] {
                let mut found = records.clone();
                if begun {
                    found.push(started(action));
                }
                found.push(resumed("first"));
                let wanted = if action < 3 { round(0) } else { Next::Do(3) };
                assert_eq!(after(&found).next(), wanted, "{action} {begun}");
                found.push(resumed("second"));
                let rebooted = Next::Finish(Outcome::Rebooted);
                assert_eq!(after(&found).next(), rebooted, "{action} {begun}");
            }
            records.extend([started(action), succeeded(action)]);
        }
        records.push(resumed("first"));
        assert_eq!(after(&records).next(), Next::Finish(Outcome::New));
    }

    #[test]
    fn a_failure_is_undone_in_rounds_and_recovery_starts_them_anew() {
        let mut records = vec![started(0), failed(0)];
        for number in 0..ROUNDS {
            assert_eq!(after(&records).next(), round(number));
            records.push(undo(1));
            assert_eq!(after(&records).next(), Next::UndoStep(0));
            records.push(Record::UndoStarted { action: 0 });
            assert_eq!(after(&records).next(), Next::UndoStep(0));
            let mut found = records.clone();
            found.push(resumed("first"));
            assert_eq!(after(&found).next(), round(0));
            records.push(if number % 2 == 0 {
                Record::Undone { action: 0 }
            } else {
                Record::UndoFailed {
                    action: 0,
                    error: String::new(),
                }
            });
        }
        assert_eq!(after(&records).next(), Next::Finish(Outcome::Old));
    }

    #[test]
    fn invalid_records_are_refused_in_every_phase() {
        let all = || {
            [
                started(0),
                succeeded(0),
                failed(0),
                resumed("first"),
                undo(1),
                Record::UndoStarted { action: 0 },
                Record::Undone { action: 0 },
                Record::UndoFailed {
                    action: 0,
                    error: String::new(),
                },
                end(),
                started(1),
                succeeded(1),
                Record::UndoStarted { action: 1 },
                Record::Undone { action: 1 },
            ]
        };
        // Indexes of the records that may follow.
        let phases: [(&[Record], &[usize]); 5] = [
            (&[], &[0, 3, 8]),
            (&[started(0)], &[1, 2, 3, 8]),
            (&[started(0), failed(0)], &[3, 4, 8]),
            (&[started(0), failed(0), undo(1)], &[3, 5, 6, 7, 8]),
            (&[end()], &[]),
        ];
        for (before, good) in phases {
            for (place, record) in all().iter().enumerate() {
                let taken = after(before).take(record).is_ok();
                assert_eq!(taken, good.contains(&place), "{before:?}, then {record:?}");
            }
        }
    }
}
