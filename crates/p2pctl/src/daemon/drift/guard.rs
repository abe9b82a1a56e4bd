//! The thread that restores ACS settings. It reads a few registers four times a second, and waits neither for VMMs nor
//! for scans of the whole host.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hotplug::regroup::{Host as _, RegroupError};
use iommu_group::{AcsSetting, Sbdf};

use super::Shared;
use super::acs::{Found, Watch, WatchedPort};
use super::assessment::Alarm;
use super::emitter::Emitter;
use super::snapshot::acs_change;

/// Interval between reads. Wrong settings are restored within a second.
pub(super) const PERIOD: Duration = Duration::from_millis(250);

pub(super) struct Guard {
    shared: Arc<Shared>,
    watch: Watch,
    /// Deviations that were not restored, so that each is reported once.
    open: BTreeMap<Sbdf, Found>,
    emitter: Emitter,
}

/// A deviation at a port, and the result of restoring it.
struct Done {
    port: Sbdf,
    good: AcsSetting,
    found: Found,
    result: Result<(), RegroupError>,
}

impl Guard {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            emitter: Emitter::new(shared.drift_events.clone()),
            shared,
            watch: Watch::default(),
            open: BTreeMap::new(),
        }
    }

    /// Checks every port once. All settings are restored before anything is reported.
    pub(super) fn turn(&mut self) {
        if let Some(watch) = self.shared.take_watch() {
            self.watch = watch;
            let ports = &self.watch;
            self.open.retain(|port, _| ports.has(*port));
        }
        let sysfs = self.shared.runner.host().host.sysfs();
        let mut done = Vec::new();
        for port in &self.watch.ports {
            let at = port.register.port();
            if !self.is_current() && !self.is_spared(at) {
                continue;
            }
            match port.check(sysfs) {
                Some(found) => {
                    let result = self.put_back(port, found);
                    // Otherwise a transaction has started, and the deviation is its change.
                    if !matches!(result, Ok(false)) {
                        done.push(Done {
                            port: at,
                            good: port.good,
                            found,
                            result: result.map(drop),
                        });
                    }
                }
                // Somebody else has restored the port.
                None if self.open.remove(&at).is_some() => self.shared.request_scan(),
                None => {}
            }
        }
        let changed: BTreeMap<Sbdf, String> = done
            .into_iter()
            .filter_map(|done| self.report(done))
            .collect();
        if !changed.is_empty() {
            self.shared.request_scan();
            self.shared.alarm(&Alarm {
                before: Arc::clone(&self.watch.normal),
                changed,
            });
        }
    }

    /// Whether no transaction has started since the watch was made.
    fn is_current(&self) -> bool {
        self.shared.runner.activity() == (false, self.watch.transactions)
    }

    /// Whether the first transaction since then is running and does not touch the port.
    fn is_spared(&self, port: Sbdf) -> bool {
        let runner = &self.shared.runner;
        runner.spares(port, self.watch.transactions)
    }

    /// Restores a port if needed; `false` if a transaction may have started to change it.
    fn put_back(&self, port: &WatchedPort, found: Found) -> Result<bool, RegroupError> {
        let Found::PutBack(_) = found else {
            return Ok(true);
        };
        let regroup = self.shared.runner.host().regroup();
        if self.is_spared(port.register.port()) {
            let written = regroup.write_acs_beside(&port.register, &port.good);
            return written.map(|()| true);
        }
        regroup.write_acs(&port.register, &port.good, || self.is_current())
    }

    /// Reports a deviation and records it. Returns the change if it is new.
    fn report(&mut self, done: Done) -> Option<(Sbdf, String)> {
        let Done {
            port,
            good,
            found,
            result,
        } = done;
        let is = match found {
            // The scan of the whole host reports the consequences.
            Found::Gone => {
                if self.open.insert(port, found) != Some(found) {
                    self.shared.request_scan();
                }
                return None;
            }
            Found::PutBack(is) | Found::Stricter(is) => is,
        };
        let what = acs_change(port, good, is);
        let reported: [(&str, &dyn Display); 2] = [("function", &port), ("what", &what)];
        match (found, result) {
            (Found::PutBack(_), Ok(())) => {
                self.open.remove(&port);
                self.emitter.emit("drift", &reported);
                self.emitter
                    .emit("acs-restored", &[("function", &port), ("to", &good)]);
            }
            (_, Err(error)) => {
                // Each turn tries again.
                if self.open.insert(port, found) == Some(found) {
                    return None;
                }
                self.emitter.emit("drift", &reported);
                self.emitter
                    .emit("drift-error", &[("function", &port), ("error", &error)]);
            }
            (_, Ok(())) => {
                let mut ports = self.watch.ports.iter_mut();
                if let Some(watched) = ports.find(|other| other.register.port() == port) {
                    watched.good = is;
                }
                self.emitter.emit("drift", &reported);
            }
        }
        Some((port, what))
    }
}

/// Runs until the daemon ends.
pub(super) fn run(shared: Arc<Shared>) {
    let mut guard = Guard::new(Arc::clone(&shared));
    while !shared.ended.load(Ordering::Acquire) {
        guard.turn();
        std::thread::sleep(PERIOD);
    }
}
