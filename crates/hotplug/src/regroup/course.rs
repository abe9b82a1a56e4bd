//! Where a transaction is, and what comes next: the same for one that runs and for one that is found.
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

/// How often what is not as it was is looked for and put right.
pub(super) const ROUNDS: usize = 5;

/// What comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// Do the action.
    Do(usize),
    /// See what is not as it was, and begin a round of undoing.
    Undo(Round),
    /// Do the action of the round.
    UndoStep(usize),
    /// Write the end.
    Finish(Outcome),
    /// Nothing.
    Ended,
}

/// A round of undoing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Round {
    /// Its number, from 0.
    pub(super) number: usize,
    /// Whether none comes after it.
    pub(super) last: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Phase {
    /// Actions before `next` were done. One that was started and of which nothing more is known may be done or not.
    Forward {
        next: usize,
        started: bool,
    },
    /// An action failed, or nobody knows what became of it.
    Turning,
    /// In a round of undoing, which has `count` actions.
    Back {
        next: usize,
        count: usize,
    },
    Ended,
}

/// Where a transaction is.
#[derive(Debug, Clone)]
pub(super) struct Course {
    count: usize,
    commit: usize,
    boot: String,
    rounds: usize,
    rebooted: bool,
    phase: Phase,
}

/// A record that cannot follow those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a record that cannot follow those before it")]
pub(super) struct OutOfCourse;

impl Course {
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

    /// What comes next.
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

    /// Whether whoever takes over goes on, and does not undo.
    pub(super) fn is_committed(&self) -> bool {
        matches!(self.phase, Phase::Forward { next, .. } if next >= self.commit)
    }

    /// Takes note of a record.
    pub(super) fn take(&mut self, record: &Record) -> Result<(), OutOfCourse> {
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
                    // What was done since the commit is only what leads to the end: do it once more.
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
            _ => return Err(OutOfCourse),
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

    fn course() -> Course {
        Course {
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

    /// Where a transaction is after these records.
    fn after(records: &[Record]) -> Course {
        let mut course = course();
        for record in records {
            course.take(record).unwrap();
        }
        course
    }

    fn round(number: usize) -> Next {
        Next::Undo(Round {
            number,
            last: number + 1 == ROUNDS,
        })
    }

    #[test]
    fn everything_is_done_in_its_order() {
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
    fn who_takes_over_undoes_before_the_commit_and_completes_after_it() {
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
    fn a_failure_is_undone_in_rounds_and_a_successor_has_as_many() {
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
    fn records_that_make_no_sense_are_refused_in_every_phase() {
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
        // Which of them may follow, by their places in the list.
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
