//! A transaction from its beginning to its end.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use iommu_group::{AcsBits, Plan, Sbdf, Topology};
use serde::{Deserialize, Serialize};

use super::acs_register::AcsRegister;
use super::action::Action;
use super::baseline::Baseline;
use super::blocker::{Blocker, Refusal};
use super::compile::script;
use super::course::Next;
use super::difference::{Difference, differences};
use super::error::{RegroupError, StateError};
use super::forecast::{Forecast, fits};
use super::host::{Host, HostError};
use super::journal::Journal;
use super::machine::{Machine, POWER};
use super::perform::Performer;
use super::preflight::{Preflight, unwilling};
use super::record::{Begin, Outcome, Record, VERSION};
use super::restore;
use super::state_dir::{Held, StateDir};
use super::vmm::{Assigned, Vmm};

/// How long a guest may take to let go of a device, unless it is said otherwise.
const GUEST: Duration = Duration::from_secs(30);

/// How often an action of undoing is tried.
const TRIES: u32 = 3;

/// Who carries out plans on a host.
pub struct Regroup<'a> {
    host: &'a dyn Host,
    pub(super) vmms: &'a [&'a dyn Vmm],
    pub(super) state: StateDir,
    deadline: Duration,
    stop: Option<&'a AtomicBool>,
    accepted: BTreeSet<Sbdf>,
}

/// What a transaction has just put on record.
#[derive(Debug, Clone, Copy)]
pub struct Progress<'a> {
    /// The record.
    pub record: &'a Record,
    /// The action that it is about.
    pub action: Option<&'a Action>,
}

/// How a transaction ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(schemars::JsonSchema))]
pub struct Report {
    /// The name of the transaction.
    pub id: String,
    /// The plan.
    pub plan: Plan,
    /// The state that the host is in.
    pub outcome: Outcome,
    /// What failed first, and how.
    pub failure: Option<(String, String)>,
    /// What is not as it was, where it should be.
    pub remains: Vec<Difference>,
    /// The devices that virtual machines had to let go of, as they had them.
    #[serde(default)]
    pub unplugged: Vec<Assigned>,
    /// For how many milliseconds they were without them; none if they have not got them back.
    #[serde(default)]
    pub away_ms: Option<u64>,
    /// The journal.
    pub journal: PathBuf,
}

/// Told of everything that is put on record.
type Observer<'o> = dyn FnMut(&Progress<'_>) + 'o;

impl<'a> Regroup<'a> {
    /// For a host with these virtual machines, with journals in a state directory.
    pub fn new(host: &'a dyn Host, vmms: &'a [&'a dyn Vmm], state: StateDir) -> Self {
        Self {
            host,
            vmms,
            state,
            deadline: GUEST,
            stop: None,
            accepted: BTreeSet::new(),
        }
    }

    /// Gives guests this long to let go of a device.
    #[must_use]
    pub fn guest_deadline(self, deadline: Duration) -> Self {
        Self { deadline, ..self }
    }

    /// Undoes a change, as soon as this is `true`, of which groups and routes are not as planned yet; one that has come
    /// further comes to its end.
    #[must_use]
    pub fn until(self, stop: &'a AtomicBool) -> Self {
        Self {
            stop: Some(stop),
            ..self
        }
    }

    /// Accepts for all plans that these are reachable without the IOMMU.
    #[must_use]
    pub fn accepting(self, accepted: BTreeSet<Sbdf>) -> Self {
        Self { accepted, ..self }
    }

    pub(super) fn machine(&self) -> Machine<'a> {
        Machine::new(self.host)
    }

    /// What carrying out a plan would mean now. Changes nothing.
    pub fn check(&self, plan: &Plan) -> Result<Forecast, RegroupError> {
        let topology = self.machine().scan()?;
        let mut preflight = self.preflight(&topology, plan)?;
        preflight.blockers.splice(0..0, self.unfinished());
        let mut forecast = Forecast::new(&topology, plan, preflight);
        if fits(&forecast.blockers) {
            let (plug, staying) = (&forecast.plug, &forecast.staying);
            let unwilling = unwilling(self.vmms, &topology, plan, plug, staying);
            forecast.blockers.extend(unwilling);
        }
        Ok(forecast.with_last(self.state.last_away()?))
    }

    fn preflight(&self, topology: &Topology, plan: &Plan) -> Result<Preflight, HostError> {
        Preflight::of(self.machine(), topology, plan, self.vmms, &self.accepted)
    }

    pub(super) fn unfinished(&self) -> Vec<Blocker> {
        [self.state.running(), self.state.resetting()]
            .into_iter()
            .filter(|journal| journal.exists())
            .map(|journal| Blocker::Unfinished { journal })
            .collect()
    }

    /// Carries out a plan, or puts everything back if that fails.
    pub fn apply(&self, plan: &Plan, observer: &mut Observer<'_>) -> Result<Report, RegroupError> {
        let lock = self.state.lock()?;
        let machine = self.machine();
        let topology = machine.scan()?;
        let preflight = self.preflight(&topology, plan)?;
        let mut blockers = self.unfinished();
        blockers.extend(preflight.blockers);
        if !blockers.is_empty() {
            return Err(Refusal { blockers }.into());
        }
        let boot = machine.boot_id()?;
        let held = self.state.held(&boot)?;
        let assigned = preflight.assigned;
        let mut baseline = Baseline::take(machine, &topology, plan, &held.ports, assigned)?;
        baseline.exposed = preflight.exposed;
        let expose = &preflight.expose;
        let script = script(&baseline, &topology, plan, &preflight.staying, expose);
        let (homecoming, staying) = (&script.homecoming, &preflight.staying);
        let blockers = unwilling(self.vmms, &topology, plan, homecoming, staying);
        if !blockers.is_empty() {
            return Err(Refusal { blockers }.into());
        }
        let begin = Begin {
            version: VERSION,
            id: self.state.next_id()?,
            boot,
            plan: plan.clone(),
            baseline,
            actions: script.actions,
            commit: script.commit,
        };
        let mut journal = Journal::create(&self.state.running(), begin.clone())?;
        observer(&Progress {
            record: &Record::Begin(Box::new(begin)),
            action: None,
        });
        let report = self.drive(&mut journal, observer);
        drop(lock);
        report
    }

    /// Brings a transaction to its end that was interrupted; `None` if there is none.
    pub fn recover(&self, observer: &mut Observer<'_>) -> Result<Option<Report>, RegroupError> {
        if self.unfinished().is_empty() {
            return Ok(None);
        }
        let lock = self.state.lock()?;
        self.recover_reset()?;
        let running = self.state.running();
        if !running.exists() {
            return Ok(None);
        }
        let Some(mut journal) = Journal::open(&running)? else {
            // It was not even begun.
            std::fs::remove_file(&running).map_err(StateError::io("remove", &running))?;
            return Ok(None);
        };
        if journal.end().is_none() {
            let boot = self.machine().boot_id()?;
            self.record(&mut journal, Record::Resumed { boot }, observer)?;
        }
        let report = self.drive(&mut journal, observer)?;
        drop(lock);
        Ok(Some(report))
    }

    /// What the kernel calls this start of the machine.
    pub fn boot_id(&self) -> Result<String, HostError> {
        self.machine().boot_id()
    }

    /// The ports that are kept awake for what earlier transactions have set.
    pub fn held(&self) -> Result<BTreeSet<Sbdf>, RegroupError> {
        let held = self.state.held(&self.boot_id()?)?;
        Ok(held.ports.into_keys().collect())
    }

    /// Writes the ACS control register of a port that somebody else has written, unless a transaction is under way or
    /// the port is another one now. `false` if it was not wanted any more when no transaction could begin.
    pub fn write_acs(
        &self,
        register: &AcsRegister,
        control: AcsBits,
        is_wanted: impl FnOnce() -> bool,
    ) -> Result<bool, RegroupError> {
        let lock = self.state.lock()?;
        let written = is_wanted();
        if written {
            self.write_acs_beside(register, control)?;
        }
        drop(lock);
        Ok(written)
    }

    /// The same while a transaction of this process is under way, which must not touch the port.
    pub fn write_acs_beside(
        &self,
        register: &AcsRegister,
        control: AcsBits,
    ) -> Result<(), RegroupError> {
        let port = register.port();
        if register.read(self.host.sysfs()).is_none() {
            return Err(HostError::Gone { function: port }.into());
        }
        self.machine()
            .set_acs_control(port, register.offset(), control)?;
        Ok(())
    }

    fn drive(
        &self,
        journal: &mut Journal,
        observer: &mut Observer<'_>,
    ) -> Result<Report, RegroupError> {
        let begin = journal.begin().clone();
        let performer = Performer {
            machine: self.machine(),
            vmms: self.vmms,
            baseline: &begin.baseline,
            deadline: self.deadline,
        };
        loop {
            match journal.next() {
                Next::Do(action) => {
                    self.record(journal, Record::Started { action }, observer)?;
                    let result = match begin.actions.get(action) {
                        Some(_) if action < begin.commit && self.is_stopped() => {
                            Err("told to stop".to_owned())
                        }
                        Some(order) => performer.perform(order).map_err(|e| e.to_string()),
                        None => Ok(()),
                    };
                    let record = match result {
                        Ok(()) => Record::Succeeded { action },
                        Err(error) => Record::Failed { action, error },
                    };
                    self.record(journal, record, observer)?;
                }
                Next::Undo(round) => {
                    let now = self.machine().scan()?;
                    let found = differences(&begin.baseline, self.machine(), &now, self.vmms)?;
                    let actions = restore::actions(&begin.baseline, &now, &found, round);
                    if actions.is_empty() {
                        self.end(journal, Outcome::Old, found, observer)?;
                    } else {
                        self.record(journal, Record::Undo { actions }, observer)?;
                    }
                }
                Next::UndoStep(action) => {
                    self.record(journal, Record::UndoStarted { action }, observer)?;
                    let order = journal.round().get(action).cloned();
                    let mut result = Ok(());
                    // What fails once need not fail again, and there is nothing better to do.
                    for _ in 0..TRIES {
                        result = order.iter().try_for_each(|order| performer.perform(order));
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
                    let now = self.machine().scan()?;
                    let mut found = differences(&begin.baseline, self.machine(), &now, self.vmms)?;
                    if outcome == Outcome::New {
                        // Everything else is meant to be different, and was checked.
                        found.retain(Difference::is_loss);
                    }
                    self.end(journal, outcome, found, observer)?;
                }
                Next::Ended => return self.retire(journal, begin),
            }
        }
    }

    fn is_stopped(&self) -> bool {
        self.stop.is_some_and(|stop| stop.load(Ordering::Acquire))
    }

    fn end(
        &self,
        journal: &mut Journal,
        outcome: Outcome,
        remains: Vec<Difference>,
        observer: &mut Observer<'_>,
    ) -> Result<(), RegroupError> {
        if outcome == Outcome::New {
            self.hold(journal.begin())?;
        }
        self.record(journal, Record::End { outcome, remains }, observer)
    }

    /// Notes which ports stay awake.
    fn hold(&self, begin: &Begin) -> Result<(), RegroupError> {
        let mut held: Held = self.state.held(&begin.boot)?;
        for (port, was) in begin.baseline.with(|part| part.awake || part.removed) {
            let power = was.rest.clone();
            let power = power.or_else(|| was.attributes.get(POWER).cloned());
            match power.filter(|_| was.part.held) {
                Some(power) => held.ports.insert(port, power),
                None => held.ports.remove(&port),
            };
        }
        Ok(self.state.set_held(&held)?)
    }

    fn retire(&self, journal: &Journal, begin: Begin) -> Result<Report, RegroupError> {
        let path = self.state.retire(&begin.id)?;
        let (outcome, remains) = match journal.end() {
            Some((outcome, remains)) => (*outcome, remains.clone()),
            None => (Outcome::Old, Vec::new()),
        };
        let away = Journal::away(&path)?;
        Ok(Report {
            unplugged: begin.baseline.assigned,
            away_ms: away.map(|away| u64::try_from(away.as_millis()).unwrap_or(u64::MAX)),
            id: begin.id,
            plan: begin.plan,
            outcome,
            failure: journal.failure().cloned(),
            remains,
            journal: path,
        })
    }

    /// Puts something on record, and tells of it when it is there.
    fn record(
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
