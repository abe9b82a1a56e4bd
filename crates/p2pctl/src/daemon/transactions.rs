//! Transactions, one at a time, each in a thread of its own.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use hotplug::regroup::{
    Forecast, LinuxHost, Progress, Record, Regroup, RegroupError, Report, ResetDone, ResetOrder,
    StateDir, StateError, VmDevice, Vmm,
};
use iommu_group::{Plan, Sbdf, Step};
use vmm_api::{EventLog, Failure};

use super::guests::{Guest, Guests};
use super::messages::{STEP, STUCK};
use crate::json;
use crate::progress::ProgressEvent;

/// Number of reports that are kept.
const KEPT: usize = 64;

/// Number of devices whose return by a transaction is remembered.
const REMEMBERED: usize = 1024;

/// The host, its virtual machines and the state directory.
#[derive(Clone)]
pub(crate) struct Host {
    pub(crate) host: LinuxHost,
    pub(crate) guests: Guests,
    pub(crate) state: StateDir,
}

impl Host {
    /// Access to the host without its virtual machines.
    pub(crate) fn regroup(&self) -> Regroup<'_> {
        Regroup::new(&self.host, &[], self.state.clone())
    }
}

/// Runs transactions. Clones share their state.
#[derive(Clone)]
pub(crate) struct TransactionRunner {
    host: Arc<Host>,
    events: EventLog,
    now: Arc<Mutex<Now>>,
}

#[derive(Default)]
struct Now {
    busy: bool,
    /// Number of transactions that have started.
    count: u64,
    reports: BTreeMap<String, Report>,
    /// The functions that the last transactions may have touched, newest last; `None` if unknown.
    touched: VecDeque<Touched>,
    /// The transaction count when a transaction last returned a device, by VM and name.
    given_back: BTreeMap<(String, String), u64>,
}

impl Now {
    fn give_back(&mut self, devices: &[VmDevice]) {
        for device in devices {
            let key = (device.vm.clone(), device.id.clone());
            self.given_back.insert(key, self.count);
        }
        while self.given_back.len() > REMEMBERED {
            let oldest = self.given_back.iter().min_by_key(|(_, count)| **count);
            let oldest = oldest.map(|(key, _)| key.clone());
            oldest.and_then(|key| self.given_back.remove(&key));
        }
    }
}

/// The functions that a transaction may touch; `None` for any.
pub(crate) type Touched = Option<BTreeSet<Sbdf>>;

/// Name of a started transaction, `None` if there was nothing to do, or why it did not start.
pub(crate) type Started = Result<Option<String>, Failure>;

/// The work of a transaction.
enum Work {
    Apply(Box<Plan>),
    Recover,
}

impl TransactionRunner {
    pub(crate) fn new(host: Host, events: EventLog) -> Self {
        Self {
            host: Arc::new(host),
            events,
            now: Arc::default(),
        }
    }

    pub(crate) fn host(&self) -> &Host {
        &self.host
    }

    pub(crate) fn events(&self) -> &EventLog {
        &self.events
    }

    /// Whether a transaction is running, and how many have started.
    pub(crate) fn activity(&self) -> (bool, u64) {
        let now = self.lock();
        (now.busy, now.count)
    }

    /// The report of a transaction that has ended.
    pub(crate) fn report(&self, transaction: &str) -> Option<Report> {
        self.lock().reports.get(transaction).cloned()
    }

    /// Whether the running transaction does not touch this port and is the only one since this count.
    pub(crate) fn spares(&self, port: Sbdf, since: u64) -> bool {
        let now = self.lock();
        let touched = now.touched.back().and_then(Option::as_ref);
        now.busy
            && now.count == since.saturating_add(1)
            && touched.is_some_and(|functions| !functions.contains(&port))
    }

    /// The functions that transactions may have touched since this count.
    pub(crate) fn touched(&self, since: u64) -> Touched {
        let now = self.lock();
        let count = usize::try_from(now.count.saturating_sub(since)).unwrap_or(usize::MAX);
        let first = now.touched.len().checked_sub(count)?;
        let mut all = BTreeSet::new();
        for touched in now.touched.range(first..) {
            all.extend(touched.as_ref()?);
        }
        Some(all)
    }

    /// The transaction count when a transaction last returned this device.
    pub(crate) fn given_back(&self, device: &VmDevice) -> Option<u64> {
        let key = (device.vm.clone(), device.id.clone());
        self.lock().given_back.get(&key).copied()
    }

    /// The effects that a plan would have now.
    pub(crate) fn check(&self, plan: &Plan) -> Result<Forecast, Failure> {
        let forecast = self.regroup(|regroup| regroup.check(plan));
        forecast.map_err(|error| failure(&error))
    }

    /// Resets a function, if no transaction is running.
    pub(crate) fn reset(&self, order: &ResetOrder) -> Result<ResetDone, Failure> {
        // A reset restores the ports that it changes.
        self.reserve(Some(BTreeSet::new()))?;
        let result = self.regroup(|regroup| regroup.reset(order));
        self.lock().busy = false;
        let done = result.map_err(|error| failure(&error))?;
        let hits: Vec<String> = done.hits.iter().map(ToString::to_string).collect();
        self.emit(
            "reset",
            [
                ("function", order.function.to_string()),
                ("kind", done.kind.to_string()),
                ("hits", hits.join(" ")),
            ],
        );
        Ok(done)
    }

    fn regroup<T>(&self, ask: impl FnOnce(Regroup<'_>) -> T) -> T {
        let guests: Vec<Guest> = self.host.guests.now();
        let vmms: Vec<&dyn Vmm> = guests.iter().map(|guest| &**guest as &dyn Vmm).collect();
        let regroup = Regroup::new(&self.host.host, &vmms, self.host.state.clone());
        let accepted = self.host.guests.policy().exposed().collect();
        ask(regroup.accepting(accepted))
    }

    /// Marks the host as being changed, or fails if it is already.
    fn reserve(&self, touches: Touched) -> Result<(), Failure> {
        let mut now = self.lock();
        if now.busy {
            let reasons = vec!["another change is running (p2pctl watch)".to_owned()];
            return Err(Failure::Refused { reasons });
        }
        now.busy = true;
        now.count = now.count.saturating_add(1);
        now.touched.push_back(touches);
        while now.touched.len() > KEPT {
            now.touched.pop_front();
        }
        Ok(())
    }

    /// Starts to apply a plan. Returns when the plan is in the journal, or is refused.
    pub(crate) fn apply(&self, plan: Plan, guest: Option<Duration>) -> Started {
        self.begin(Work::Apply(Box::new(plan)), guest)
    }

    /// Starts to recover an interrupted transaction; `None` if there is none.
    pub(crate) fn recover(&self) -> Started {
        self.begin(Work::Recover, None)
    }

    /// Waits until no transaction is running.
    pub(crate) fn wait_idle(&self) {
        const LOOK: Duration = Duration::from_millis(50);
        while self.lock().busy {
            thread::sleep(LOOK);
        }
    }

    fn begin(&self, work: Work, guest: Option<Duration>) -> Started {
        let touches = match &work {
            Work::Apply(plan) => Some(touches(plan)),
            Work::Recover => None,
        };
        self.reserve(touches)?;
        let (sender, started) = channel();
        let this = self.clone();
        let spawned = thread::Builder::new()
            .name("transaction".to_owned())
            .spawn(move || {
                this.carry_out(work, guest, &sender);
            });
        if let Err(error) = spawned {
            self.lock().busy = false;
            return Err(Failure::failed(&error));
        }
        started.recv().unwrap_or(Err(Failure::Ending))
    }

    fn carry_out(&self, work: Work, guest: Option<Duration>, started: &Sender<Started>) {
        let result = self.transact(work, guest, started);
        let mut now = self.lock();
        now.busy = false;
        if let Ok(Some(report)) = &result {
            now.give_back(&report.unplugged);
            now.reports.insert(report.id.clone(), report.clone());
            while now.reports.len() > KEPT {
                now.reports.pop_first();
            }
        }
        drop(now);
        // The caller already has the name of the transaction, unless the transaction ended at once.
        let _ = match result {
            Ok(report) => {
                let id = report.as_ref().map(|report| report.id.clone());
                if let Some(report) = report {
                    self.emit_end(&report);
                }
                started.send(Ok(id))
            }
            Err(error) => {
                if !matches!(error, RegroupError::Refused(_)) {
                    self.emit(STUCK, [("error", error.to_string())]);
                }
                started.send(Err(failure(&error)))
            }
        };
    }

    fn transact(
        &self,
        work: Work,
        guest: Option<Duration>,
        started: &Sender<Started>,
    ) -> Result<Option<Report>, RegroupError> {
        // A recovered transaction already has a name, and may have taken devices from virtual machines.
        let (mut id, guests) = match work {
            Work::Apply(_) => (None, self.host.guests.now()),
            Work::Recover => match self.host.state.unfinished()? {
                Some(found) => (found.id, self.host.guests.with_recorded(&found.vms)),
                None => (None, Vec::new()),
            },
        };
        let vmms: Vec<&dyn Vmm> = guests.iter().map(|guest| &**guest as &dyn Vmm).collect();
        let mut regroup = Regroup::new(&self.host.host, &vmms, self.host.state.clone())
            .accepting(self.host.guests.policy().exposed().collect());
        if let Some(guest) = guest {
            regroup = regroup.guest_deadline(guest);
        }
        let mut first = true;
        let mut observe = |progress: &Progress<'_>| {
            if let Record::Begin(begin) = progress.record {
                id = Some(begin.id.clone());
            }
            let Some(id) = &id else {
                return;
            };
            if std::mem::take(&mut first) {
                self.emit("transaction-begun", [("transaction", id.clone())]);
                let _ = started.send(Ok(Some(id.clone())));
            }
            let event = ProgressEvent::of(progress);
            if let Some(Ok(mut properties)) = event.map(|event| event.properties()) {
                properties.insert("transaction".to_owned(), id.clone());
                let text = progress.action.map(ToString::to_string);
                properties.extend(text.map(|text| ("text".to_owned(), text)));
                self.events.note("host", STEP, properties);
            }
        };
        match work {
            Work::Apply(plan) => regroup.apply(&plan, &mut observe).map(Some),
            Work::Recover => {
                let recovered = regroup.recover(&mut observe)?;
                for lost in recovered.reset {
                    self.emit("reset-incomplete", [("error", lost.to_string())]);
                }
                Ok(recovered.report)
            }
        }
    }

    fn emit_end(&self, report: &Report) {
        let outcome = json::variant(&report.outcome).unwrap_or_default();
        let remains: Vec<String> = report.remains.iter().map(ToString::to_string).collect();
        let failure = report.failure.as_ref();
        let more = [
            (
                "failure",
                failure.map(|(action, error)| format!("{action}: {error}")),
            ),
            (
                "remains",
                Some(remains.join("; ")).filter(|text| !text.is_empty()),
            ),
            ("open", report.open.clone()),
            ("unrecorded", report.unrecorded.clone()),
        ];
        let more = more
            .into_iter()
            .filter_map(|(key, text)| Some((key, text?)));
        let always = [("transaction", report.id.clone()), ("outcome", outcome)];
        self.emit("transaction-ended", always.into_iter().chain(more));
    }

    fn emit(&self, event: &str, properties: impl IntoIterator<Item = (&'static str, String)>) {
        let properties = properties.into_iter();
        let properties = properties.map(|(key, text)| (key.to_owned(), text));
        self.events.note("host", event, properties.collect());
    }

    fn lock(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The functions that a plan may touch: all functions below the root ports of those that change groups.
fn touches(plan: &Plan) -> BTreeSet<Sbdf> {
    let mut all = plan.unplug.clone();
    for step in &plan.steps {
        match step {
            Step::Unplug { functions }
            | Step::Remove { functions }
            | Step::Replug { functions } => {
                all.extend(functions);
            }
            Step::KeepAwake { ports } | Step::Rescan { below: ports } => all.extend(ports),
            Step::SetAcs { port, .. } | Step::SetEgress { port, .. } => {
                all.insert(*port);
            }
            Step::CheckGroups { expect } => all.extend(expect.iter().flatten()),
        }
    }
    all
}

fn failure(error: &RegroupError) -> Failure {
    match error {
        RegroupError::Refused(refusal) => Failure::Refused {
            reasons: refusal.blockers.iter().map(ToString::to_string).collect(),
        },
        RegroupError::State(StateError::Busy { .. }) => Failure::Refused {
            reasons: vec![error.to_string()],
        },
        RegroupError::Host(_) | RegroupError::State(_) => Failure::failed(error),
    }
}
