//! Runs a transaction from its current state to its end.

use iommu_group::Topology;

use super::difference::{Difference, differences, is_waiting};
use super::error::RegroupError;
use super::executor::Executor;
use super::host::HostError;
use super::journal::Journal;
use super::record::{Outcome, Record};
use super::restore;
use super::saga_state::Next;
use super::snapshot::Snapshot;
use super::transaction::{Observer, Progress, Regroup, Report};

/// Number of attempts for an undo action and for a scan of the host.
const TRIES: u32 = 3;

/// Reason why a complete journal stays open.
const WAITING: &str = "not every device is back in its virtual machine";

impl Regroup<'_> {
    /// Continues from the state of the journal.
    pub(super) fn drive(
        &self,
        journal: &mut Journal,
        observer: &mut Observer<'_>,
    ) -> Result<Report, RegroupError> {
        let begin = journal.begin().clone();
        let executor = Executor {
            ops: self.sysfs_ops(),
            vmms: self.vmms,
            snapshot: &begin.snapshot,
            deadline: self.deadline,
        };
        loop {
            match journal.next() {
                Next::Do(action) => {
                    self.record(journal, Record::Started { action }, observer)?;
                    let result = match begin.actions.get(action) {
                        // Recovery would undo a transaction whose records are lost, so undo it at once.
                        _ if journal.is_lost_before_commit() => {
                            Err(journal.gap().cloned().unwrap_or_default())
                        }
                        Some(_) if action < begin.commit && self.is_stopped() => {
                            Err("stopped on request".to_owned())
                        }
                        Some(order) => executor.execute(order).map_err(|e| e.to_string()),
                        None => Ok(()),
                    };
                    let record = match result {
                        Ok(()) => Record::Succeeded { action },
                        Err(error) => Record::Failed { action, error },
                    };
                    self.record(journal, record, observer)?;
                }
                Next::Undo(round) => {
                    let (now, found) = self.compare(&begin.snapshot)?;
                    let actions = restore::actions(&begin.snapshot, &now, &found, round);
                    if !actions.is_empty() {
                        self.record(journal, Record::Undo { actions }, observer)?;
                    } else if let Some(open) = self.end(journal, Outcome::Old, &found, observer)? {
                        return Ok(open);
                    }
                }
                Next::UndoStep(action) => {
                    self.record(journal, Record::UndoStarted { action }, observer)?;
                    let order = journal.round().get(action).cloned();
                    let mut result = Ok(());
                    // A retry may succeed, and there is no alternative.
                    for _ in 0..TRIES {
                        result = order.iter().try_for_each(|order| executor.execute(order));
                        if result.is_ok() {
                            break;
                        }
                    }
                    let record = match result {
                        Ok(()) => Record::Undone { action },
                        Err(error) => Record::UndoFailed {
                            action,
                            error: error.to_string(),
                        },
                    };
                    self.record(journal, record, observer)?;
                }
                Next::Finish(outcome) => {
                    let (now, mut found) = self.compare(&begin.snapshot)?;
                    found.retain(|difference| !difference.is_of_ports(&begin.snapshot, &now));
                    if outcome == Outcome::New {
                        // The other differences are planned and were checked.
                        found.retain(Difference::is_loss);
                    }
                    if let Some(open) = self.end(journal, outcome, &found, observer)? {
                        return Ok(open);
                    }
                }
                Next::Ended => {
                    let (outcome, remains) = journal.end().cloned().unwrap_or_default();
                    let retired = self.state.retire(journal);
                    let open = retired.err().map(|error| error.to_string());
                    return Ok(report(journal, outcome, remains, open));
                }
            }
        }
    }

    /// The differences between the host and the snapshot.
    fn compare(&self, snapshot: &Snapshot) -> Result<(Topology, Vec<Difference>), HostError> {
        let scan = || {
            let now = self.sysfs_ops().scan()?;
            let found = differences(snapshot, self.sysfs_ops(), &now, self.vmms)?;
            Ok((now, found))
        };
        // Functions may come and go during a scan.
        (1..TRIES).find_map(|_| scan().ok()).map_or_else(scan, Ok)
    }

    /// Ends a transaction. It stays open, and is reported as open, while a device can still be given back.
    fn end(
        &self,
        journal: &mut Journal,
        outcome: Outcome,
        remains: &[Difference],
        observer: &mut Observer<'_>,
    ) -> Result<Option<Report>, RegroupError> {
        let open = |why: String| Some(report(journal, outcome, remains.to_vec(), Some(why)));
        if outcome != Outcome::Rebooted && is_waiting(remains) {
            return Ok(open(WAITING.to_owned()));
        }
        if outcome == Outcome::New {
            let begin = journal.begin();
            if let Err(error) = self.state.hold(&begin.boot, &begin.snapshot) {
                return Ok(open(error.to_string()));
            }
        }
        let remains = remains.to_vec();
        self.record(journal, Record::End { outcome, remains }, observer)?;
        Ok(None)
    }

    /// Writes a record and then notifies the observer.
    pub(super) fn record(
        &self,
        journal: &mut Journal,
        record: Record,
        observer: &mut Observer<'_>,
    ) -> Result<(), RegroupError> {
        journal.write(record.clone())?;
        let action = match &record {
            Record::Started { action }
            | Record::Succeeded { action }
            | Record::Failed { action, .. } => journal.begin().actions.get(*action),
            Record::UndoStarted { action }
            | Record::Undone { action }
            | Record::UndoFailed { action, .. } => journal.round().get(*action),
            Record::Begin(_)
            | Record::Resumed { .. }
            | Record::Undo { .. }
            | Record::End { .. } => None,
        };
        observer(&Progress {
            record: &record,
            action,
        });
        Ok(())
    }
}

fn report(
    journal: &Journal,
    outcome: Outcome,
    remains: Vec<Difference>,
    open: Option<String>,
) -> Report {
    let begin = journal.begin();
    Report {
        id: begin.id.clone(),
        plan: begin.plan.clone(),
        outcome,
        failure: journal.failure().cloned(),
        remains,
        unplugged: begin.snapshot.assigned.clone(),
        away_ms: Journal::away_ms(journal.path()),
        journal: journal.path().to_owned(),
        unrecorded: journal.gap().cloned(),
        open,
    }
}
