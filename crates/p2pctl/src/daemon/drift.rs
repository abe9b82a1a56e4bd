//! Drift: changes to the host that the daemon did not make. ACS settings of ports change, devices change groups, and
//! functions appear.
//!
//! ```text
//! guard:  ACS settings, four times a second ─▶ restore ────────────────────────┐
//! scanner: uevents of PCI functions ─▶ scan the whole host ─▶ differences ─────┴▶ alarm ─▶ worker, one per VM
//!
//! worker: close the mappings ─▶ check the host ─▶ reopen them, or unplug, check again, plug
//! ```
//! The guard and the scanner never call a VMM, and each worker calls only its own VMM. A VMM that does not answer
//! therefore delays neither ACS nor other VMs. Events are written by another thread, so a log reader that blocks delays
//! nothing either.
//!
//! A transaction of the daemon changes the same state. What is seen during a transaction is ignored; the state after it
//! is the new reference.

mod acs;
mod assessment;
mod emitter;
mod entry;
mod guard;
mod inbox;
mod recovery;
mod response;
mod scanner;
mod schedule;
mod snapshot;
#[cfg(test)]
mod tests;
mod worker;

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use hotplug::regroup::{DeviceFacts, Regroup, VmDevice, VmmError, WithheldDevice};
use iommu_group::Exposure;
use vmm_api::Client;

use super::guests::{Guest, NamedSocket};
use super::transactions::TransactionRunner;
use crate::cli::Global;
use crate::source::Source;
use acs::Watch;
use assessment::Alarm;
use emitter::DriftEvent;
use inbox::Inbox;
use snapshot::Snapshot;
use worker::{Worker, WorkerEnv};

/// How long the daemon's shutdown waits for devices that are being returned to their VMs.
const END: Duration = Duration::from_secs(10);

/// Timeout of a VMM's answer to a ping.
const PING: Duration = Duration::from_secs(5);

/// The threads that watch the host. Dropping this ends them.
pub(crate) struct Drift {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Drift {
    pub(crate) fn start(runner: TransactionRunner, global: Global) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            drift_events: emitter::start(runner.events().clone())?,
            runner,
            global,
            ended: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
            scan_requested: AtomicBool::new(false),
            watch: Mutex::default(),
            inboxes: Mutex::default(),
        });
        let mut drift = Self {
            shared: Arc::clone(&shared),
            threads: Vec::new(),
        };
        let (for_guard, for_scanner) = (Arc::clone(&shared), Arc::clone(&shared));
        let thread = |name: &str| thread::Builder::new().name(name.to_owned());
        let guard = thread("drift-acs").spawn(move || guard::run(for_guard))?;
        drift.threads.push(guard);
        let scanner = thread("drift").spawn(move || scanner::run(for_scanner))?;
        drift.threads.push(scanner);
        let recovery = thread("drift-recovery").spawn(move || recovery::run(&shared))?;
        drift.threads.push(recovery);
        Ok(drift)
    }
}

impl Drop for Drift {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Release);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                eprintln!("p2pctl: a thread that watches for drift has panicked");
            }
        }
        let until = Instant::now() + END;
        loop {
            let left = self.shared.at_work();
            if left.is_empty() {
                break;
            }
            if Instant::now() >= until {
                eprintln!(
                    "p2pctl: devices of {} are still closed or unplugged because of drift",
                    left.join(", ")
                );
                break;
            }
            thread::sleep(Duration::from_millis(50));
        }
        self.shared.is_over.store(true, Ordering::Release);
    }
}

/// State that the threads share.
struct Shared {
    runner: TransactionRunner,
    global: Global,
    /// Queue of the events to report.
    drift_events: SyncSender<DriftEvent>,
    ended: AtomicBool,
    /// Whether the workers must end as well.
    is_over: AtomicBool,
    /// Whether the scanner has a reason to scan.
    scan_requested: AtomicBool,
    /// The next watch for the guard.
    watch: Mutex<Option<Watch>>,
    /// The workers, by the sockets of their VMs.
    inboxes: Mutex<BTreeMap<PathBuf, (String, Arc<Inbox>)>>,
}

impl Shared {
    fn set_watch(&self, watch: Watch) {
        *lock(&self.watch) = Some(watch);
    }

    fn take_watch(&self) -> Option<Watch> {
        lock(&self.watch).take()
    }

    fn request_scan(&self) {
        self.scan_requested.store(true, Ordering::Release);
    }

    fn take_scan_request(&self) -> bool {
        self.scan_requested.swap(false, Ordering::AcqRel)
    }

    /// Whether the policy file accepts an exposure, for any device.
    fn is_accepted(&self, exposure: &Exposure) -> bool {
        let policy = self.runner.host().guests.policy();
        policy.consent(exposure.function).is_some()
    }

    /// Sends an alarm to the workers of all VMs, without waiting.
    fn alarm(self: &Arc<Self>, alarm: &Alarm) {
        for at in self.runner.host().guests.sockets() {
            self.deliver(at, |inbox| inbox.alarm(alarm));
        }
        lock(&self.inboxes).retain(|_, (_, inbox)| !inbox.is_closed());
    }

    /// Delivers something to the worker of a VM, and starts the worker if needed.
    fn deliver(self: &Arc<Self>, at: NamedSocket, leave: impl Fn(&Inbox) -> bool) {
        let mut inboxes = lock(&self.inboxes);
        let known = inboxes.get(&at.socket);
        if known.is_some_and(|(_, inbox)| leave(inbox)) {
            return;
        }
        let inbox = Arc::new(Inbox::default());
        leave(&inbox);
        let env = Arc::new(Vm {
            shared: Arc::clone(self),
            at: at.clone(),
        });
        match Worker::start(at.name.clone(), env, Arc::clone(&inbox)) {
            Ok(()) => drop(inboxes.insert(at.socket, (at.name, inbox))),
            Err(error) => eprintln!("p2pctl: cannot start a thread for {}: {error}", at.name),
        }
    }

    /// The VMs with devices that are closed or unplugged.
    fn at_work(&self) -> Vec<String> {
        let inboxes = lock(&self.inboxes);
        let at_work = inboxes.values().filter(|(_, inbox)| !inbox.is_at_rest());
        at_work.map(|(name, _)| name.clone()).collect()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A VM and its host.
struct Vm {
    shared: Arc<Shared>,
    at: NamedSocket,
}

impl Vm {
    fn regroup(&self) -> Regroup<'_> {
        self.shared.runner.host().regroup()
    }
}

impl WorkerEnv for Vm {
    fn reach(&self, patience: Duration) -> Result<Guest, VmmError> {
        self.shared.runner.host().guests.reach(&self.at, patience)
    }

    fn scan(&self) -> Option<Snapshot> {
        let source = Source::load(&self.shared.global).ok()?;
        Some(Snapshot::of(Arc::new(source.host.into_topology())))
    }

    fn activity(&self) -> (bool, u64) {
        self.shared.runner.activity()
    }

    fn given_back(&self, device: &VmDevice) -> Option<u64> {
        self.shared.runner.given_back(device)
    }

    fn is_accepted(&self, device: &VmDevice, exposure: &Exposure) -> bool {
        device.expose.contains(&exposure.function) || self.shared.is_accepted(exposure)
    }

    fn withhold(&self, device: &VmDevice, good: &DeviceFacts) -> Result<(), String> {
        let client = Client::new(&self.at.socket).with_patience(PING);
        let ping = client.ping().map_err(|error| error.to_string())?;
        let withheld = WithheldDevice {
            device: device.clone(),
            vmm: ping.pid,
            good: good.clone(),
        };
        let withheld = self.regroup().withhold(&withheld);
        withheld.map_err(|error| error.to_string())
    }

    fn release(&self, id: &str) -> Result<(), String> {
        let released = self.regroup().release(&self.at.name, id);
        released.map_err(|error| error.to_string())
    }

    fn has_ended(&self) -> bool {
        self.shared.is_over.load(Ordering::Acquire)
    }

    fn drift_events(&self) -> SyncSender<DriftEvent> {
        self.shared.drift_events.clone()
    }
}
