//! The thread that scans the whole host when the kernel reports that a function appeared or disappeared.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Instant;

use hotplug::regroup::RegroupError;
use iommu_group::{Exposure, Sbdf, Topology};

use super::super::uevents::Uevents;
use super::Shared;
use super::acs::Watch;
use super::assessment::Alarm;
use super::emitter::Emitter;
use super::schedule::{Moment, Schedule};
use super::snapshot::{Snapshot, remedy};
use crate::source::Source;

pub(super) struct Scanner {
    shared: Arc<Shared>,
    started: Instant,
    schedule: Schedule,
    /// `None` if uevents are not available.
    uevents: Option<Uevents>,
    /// The transaction count at the last scan, and the reference state of the host since.
    normal: Option<(u64, Arc<Snapshot>)>,
    /// Differences from the reference that were reported. They persist until ACS is restored.
    reported: BTreeSet<String>,
    /// Whether ACS had to be restored at the last scan.
    was_waiting: bool,
    emitter: Emitter,
}

impl Scanner {
    fn new(shared: Arc<Shared>) -> Self {
        let mut scanner = Self {
            emitter: Emitter::new(shared.drift_events.clone()),
            shared,
            started: Instant::now(),
            schedule: Schedule::new(true),
            uevents: None,
            normal: None,
            reported: BTreeSet::new(),
            was_waiting: false,
        };
        // Uevents are about this host only.
        let elsewhere = scanner.shared.global.sysfs.clone();
        match elsewhere.filter(|sysfs| sysfs != Path::new("/sys")) {
            None => match Uevents::open() {
                Ok(uevents) => scanner.uevents = Some(uevents),
                Err(error) => scanner.poll(&error.to_string()),
            },
            Some(sysfs) => scanner.poll(&format!("{} is not /sys", sysfs.display())),
        }
        scanner
    }

    /// Switches to polling because uevents are not available.
    fn poll(&mut self, why: &str) {
        self.uevents = None;
        self.schedule.poll();
        eprintln!(
            "p2pctl: uevents are not available ({why}): the whole host is scanned twice a second instead"
        );
        self.emitter.emit("drift-polling", &[("why", &why)]);
    }

    fn moment(&self) -> Moment {
        let (busy, transactions) = self.shared.runner.activity();
        Moment {
            now: self.started.elapsed(),
            busy,
            transactions,
        }
    }

    /// Scans if there is a reason, and waits until there may be one.
    fn turn(&mut self) {
        if self.shared.take_scan_request() {
            self.schedule.news(self.started.elapsed());
        }
        let at = self.moment();
        if self.schedule.is_due(at) {
            self.schedule.scanned(at);
            self.scan(at.transactions);
        }
        let rest = self.schedule.rest(self.moment());
        let Some(uevents) = &self.uevents else {
            thread::sleep(rest);
            return;
        };
        match uevents.wait(rest) {
            Ok(true) => self.schedule.news(self.started.elapsed()),
            Ok(false) => {}
            Err(error) => self.poll(&error.to_string()),
        }
    }

    fn scan(&mut self, count: u64) {
        // The scan fails if a function disappears meanwhile.
        let Ok(source) = Source::load(&self.shared.global) else {
            self.schedule.news(self.started.elapsed());
            return;
        };
        let topology = Arc::new(source.host.into_topology());
        let now = Arc::new(Snapshot::of(Arc::clone(&topology)));
        // A transaction that started meanwhile may have caused the differences.
        if self.shared.runner.activity() != (false, count) {
            return;
        }
        let normal = match self.normal.take() {
            Some((then, normal)) if then == count => normal,
            Some((then, normal)) => {
                self.reported.clear();
                self.was_waiting = false;
                match self.shared.runner.touched(then) {
                    Some(touched) => Arc::new(normal.after_changes(&now, &touched)),
                    None => Arc::clone(&now),
                }
            }
            None => Arc::clone(&now),
        };
        let held = self.held().unwrap_or_else(|error| {
            self.emitter.emit("drift-error", &[("error", &error)]);
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
            self.reported.clear();
            self.normal = Some((count, Arc::clone(&now)));
            self.shared
                .set_watch(Watch::new(count, now, &topology, &held));
        }
    }

    /// The ports whose ACS a transaction holds.
    fn held(&self) -> Result<BTreeSet<Sbdf>, RegroupError> {
        self.shared.runner.host().regroup().held()
    }

    /// Reports the differences and sends an alarm for those that are new.
    fn answer(&mut self, topology: &Topology, watch: &Watch, now: &Snapshot, is_waiting: bool) {
        let normal = &watch.normal;
        let mut changed = BTreeMap::new();
        for (function, what) in normal.changes(now) {
            if self.reported.insert(what.clone()) {
                // The guard reports changes of these ports.
                if !(watch.has(function) && now.acs.contains_key(&function)) {
                    self.emitter
                        .emit("drift", &[("function", &function), ("what", &what)]);
                }
                changed.insert(function, what);
            }
        }
        // While ACS is being restored, exposures may be temporary.
        if !is_waiting || self.was_waiting {
            for exposure in normal.lost(now) {
                if !self.shared.is_accepted(&exposure) && self.reported.insert(exposure.to_string())
                {
                    self.emit_lost(topology, &exposure);
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

    fn emit_lost(&mut self, topology: &Topology, exposure: &Exposure) {
        let list = |functions: &[Sbdf]| {
            let functions = functions.iter().map(ToString::to_string);
            functions.collect::<Vec<_>>().join(" ")
        };
        let (from, through) = (list(&exposure.to), list(&exposure.through));
        let remedy = remedy(topology, exposure);
        let reported: [(&str, &dyn Display); 4] = [
            ("function", &exposure.function),
            ("from", &from),
            ("through", &through),
            ("what", exposure),
        ];
        let hint = remedy
            .iter()
            .map(|remedy| ("remedy", remedy as &dyn Display));
        let reported: Vec<_> = reported.into_iter().chain(hint).collect();
        self.emitter.emit("isolation-lost", &reported);
    }
}

/// Runs until the daemon ends.
pub(super) fn run(shared: Arc<Shared>) {
    let mut scanner = Scanner::new(Arc::clone(&shared));
    while !shared.ended.load(Ordering::Acquire) {
        scanner.turn();
    }
}
