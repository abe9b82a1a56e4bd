//! The thread that scans the whole host when the kernel reports that a function appeared or disappeared.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Instant;

use hotplug::regroup::{Regroup, RegroupError};
use iommu_group::{Exposure, Sbdf, Topology};

use super::super::uevents::Uevents;
use super::Shared;
use super::acs::Watch;
use super::assessment::Alarm;
use super::emitter::Emitter;
use super::schedule::{Moment, Schedule};
use super::snapshot::{Snapshot, remedy};
use crate::source::Source;

pub(super) struct Looker {
    shared: Arc<Shared>,
    started: Instant,
    schedule: Schedule,
    /// `None` if uevents are not available.
    uevents: Option<Uevents>,
    /// The transaction count at the last scan, and the reference state of the host since.
    normal: Option<(u64, Arc<Snapshot>)>,
    /// Differences from the reference that were reported. They persist until ACS is restored.
    told: BTreeSet<String>,
    /// Whether ACS had to be restored at the last scan.
    was_waiting: bool,
    emitter: Emitter,
}

impl Looker {
    fn new(shared: Arc<Shared>) -> Self {
        let mut looker = Self {
            emitter: Emitter::new(shared.tellings.clone()),
            shared,
            started: Instant::now(),
            schedule: Schedule::new(true),
            uevents: None,
            normal: None,
            told: BTreeSet::new(),
            was_waiting: false,
        };
        // Uevents are about this host only.
        let elsewhere = looker.shared.global.sysfs.clone();
        match elsewhere.filter(|sysfs| sysfs != Path::new("/sys")) {
            None => match Uevents::open() {
                Ok(uevents) => looker.uevents = Some(uevents),
                Err(error) => looker.deafen(&error.to_string()),
            },
            Some(sysfs) => looker.deafen(&format!("{} is not /sys", sysfs.display())),
        }
        looker
    }

    /// Switches to polling because uevents are not available.
    fn deafen(&mut self, why: &str) {
        self.uevents = None;
        self.schedule.deafen();
        eprintln!(
            "p2pctl: the kernel does not tell what comes and goes ({why}): the whole host is looked at twice a second instead"
        );
        self.emitter.tell("drift-polling", &[("why", why)]);
    }

    fn moment(&self) -> Moment {
        let (busy, changes) = self.shared.changes.activity();
        Moment {
            now: self.started.elapsed(),
            busy,
            changes,
        }
    }

    /// Scans if there is a reason, and waits until there may be one.
    fn turn(&mut self) {
        if self.shared.was_poked() {
            self.schedule.news(self.started.elapsed());
        }
        let at = self.moment();
        if self.schedule.is_due(at) {
            self.schedule.looked(at);
            self.look(at.changes);
        }
        let rest = self.schedule.rest(self.moment());
        let Some(uevents) = &self.uevents else {
            thread::sleep(rest);
            return;
        };
        match uevents.wait(rest) {
            Ok(true) => self.schedule.news(self.started.elapsed()),
            Ok(false) => {}
            Err(error) => self.deafen(&error.to_string()),
        }
    }

    fn look(&mut self, count: u64) {
        // The scan fails if a function disappears meanwhile.
        let Ok(source) = Source::load(&self.shared.global) else {
            self.schedule.news(self.started.elapsed());
            return;
        };
        let topology = Arc::new(source.host.into_topology());
        let now = Arc::new(Snapshot::of(Arc::clone(&topology)));
        // A transaction that started meanwhile may have caused the differences.
        if self.shared.changes.activity() != (false, count) {
            return;
        }
        let normal = match self.normal.take() {
            Some((then, normal)) if then == count => normal,
            Some((then, normal)) => {
                self.told.clear();
                self.was_waiting = false;
                match self.shared.changes.touched(then) {
                    Some(touched) => Arc::new(normal.after_changes(&now, &touched)),
                    None => Arc::clone(&now),
                }
            }
            None => Arc::clone(&now),
        };
        let held = self.held().unwrap_or_else(|error| {
            let error = error.to_string();
            self.emitter.tell("drift-error", &[("error", &error)]);
            BTreeSet::new()
        });
        let watch = Watch::new(count, Arc::clone(&normal), &topology, &held);
        // Settings that have to be restored do not belong to the reference.
        let is_waiting = watch.awaits(&now);
        self.answer(&topology, &watch, &now, is_waiting);
        self.was_waiting = is_waiting;
        if is_waiting {
            self.normal = Some((count, normal));
            self.shared.set_watch(watch);
        } else {
            self.told.clear();
            self.normal = Some((count, Arc::clone(&now)));
            self.shared
                .set_watch(Watch::new(count, now, &topology, &held));
        }
    }

    /// The ports whose ACS a transaction holds.
    fn held(&self) -> Result<BTreeSet<Sbdf>, RegroupError> {
        let host = self.shared.changes.host();
        Regroup::new(&host.host, &[], host.state.clone()).held()
    }

    /// Reports the differences and sends an alarm for those that are new.
    fn answer(&mut self, topology: &Topology, watch: &Watch, now: &Snapshot, is_waiting: bool) {
        let normal = &watch.normal;
        let mut changed = BTreeMap::new();
        for (function, what) in normal.changes(now) {
            if self.told.insert(what.clone()) {
                // The guard reports changes of these ports.
                if !(watch.has(function) && now.acs.contains_key(&function)) {
                    let function = function.to_string();
                    self.emitter
                        .tell("drift", &[("function", &function), ("what", &what)]);
                }
                changed.insert(function, what);
            }
        }
        // While ACS is being restored, exposures may be temporary.
        if !is_waiting || self.was_waiting {
            for exposure in normal.lost(now) {
                if !self.shared.is_accepted(&exposure) && self.told.insert(exposure.to_string()) {
                    self.tell_lost(topology, &exposure);
                    let ends = exposure.to.iter().chain([&exposure.function]);
                    changed.extend(ends.map(|end| (*end, exposure.to_string())));
                }
            }
        } else {
            self.schedule.news(self.started.elapsed());
        }
        if !changed.is_empty() {
            self.shared.alarm(&Alarm {
                before: Arc::clone(normal),
                changed,
            });
        }
    }

    fn tell_lost(&mut self, topology: &Topology, exposure: &Exposure) {
        let list = |functions: &[Sbdf]| {
            let functions = functions.iter().map(ToString::to_string);
            functions.collect::<Vec<_>>().join(" ")
        };
        let (function, from) = (exposure.function.to_string(), list(&exposure.to));
        let (through, what) = (list(&exposure.through), exposure.to_string());
        let remedy = remedy(topology, exposure);
        let told = [
            ("function", &*function),
            ("from", &*from),
            ("through", &*through),
            ("what", &*what),
        ];
        let hint = remedy.as_deref().map(|remedy| ("remedy", remedy));
        let told: Vec<_> = told.into_iter().chain(hint).collect();
        self.emitter.tell("isolation-lost", &told);
    }
}

/// Runs until the daemon ends.
pub(super) fn run(shared: Arc<Shared>) {
    let mut looker = Looker::new(Arc::clone(&shared));
    while !shared.ended.load(Ordering::Acquire) {
        looker.turn();
    }
}
