//! What others do to the host: ports whose ACS is changed, devices that change groups, and functions that arrive behind
//! the daemon's back.
//!
//! ```text
//! guard:  ACS settings, four times a second ─▶ put back ───────────────┐
//! looker: uevents of PCI functions ─▶ look at the whole host ─▶ differ ─┴▶ alarm ─▶ worker, one for each VM
//!
//! worker: close the mappings ─▶ check the host ─▶ open them, or unplug, check again, plug
//! ```
//! The guard and the looker ask nothing of a VMM, and each worker only its own: one that does not answer holds up neither
//! ACS nor other VMs. Nor does a log that nobody reads: another thread writes it. A transaction changes the same things; what is seen meanwhile means nothing, and afterwards there
//! is a new normal.

mod acs;
mod assessment;
mod entry;
mod guard;
mod inbox;
mod looker;
mod recovery;
mod response;
mod schedule;
mod snapshot;
mod teller;
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

use super::changes::Changes;
use super::guests::{Guest, NamedSocket};
use crate::cli::Global;
use crate::source::Source;
use acs::Watch;
use assessment::Alarm;
use inbox::Inbox;
use snapshot::Snapshot;
use teller::Telling;
use worker::{Worker, World};

/// How long the end of the daemon waits for devices that are on their way back into their VMs.
const END: Duration = Duration::from_secs(10);

/// How long a VMM may take to say which process it is.
const PING: Duration = Duration::from_secs(5);

/// The threads that look. They end when this is dropped.
pub(crate) struct Drift {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Drift {
    pub(crate) fn start(changes: Changes, global: Global) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            tellings: teller::start(changes.events().clone())?,
            changes,
            global,
            ended: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
            poked: AtomicBool::new(false),
            watch: Mutex::default(),
            inboxes: Mutex::default(),
        });
        let mut drift = Self {
            shared: Arc::clone(&shared),
            threads: Vec::new(),
        };
        let (for_guard, for_looker) = (Arc::clone(&shared), Arc::clone(&shared));
        let thread = |name: &str| thread::Builder::new().name(name.to_owned());
        let guard = thread("drift-acs").spawn(move || guard::run(for_guard))?;
        drift.threads.push(guard);
        let looker = thread("drift").spawn(move || looker::run(for_looker))?;
        drift.threads.push(looker);
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
                eprintln!("p2pctl: a thread that looks for drift had panicked");
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
                    "p2pctl: devices of {} are closed or unplugged yet because of drift",
                    left.join(", ")
                );
                break;
            }
            thread::sleep(Duration::from_millis(50));
        }
        self.shared.is_over.store(true, Ordering::Release);
    }
}

/// What the threads have in common.
struct Shared {
    changes: Changes,
    global: Global,
    /// Where events are told.
    tellings: SyncSender<Telling>,
    ended: AtomicBool,
    /// Whether the workers are to end too.
    is_over: AtomicBool,
    /// Whether the looker has a reason to look.
    poked: AtomicBool,
    /// What the guard is to watch from now on.
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

    fn poke(&self) {
        self.poked.store(true, Ordering::Release);
    }

    fn was_poked(&self) -> bool {
        self.poked.swap(false, Ordering::AcqRel)
    }

    /// Whether the policy file accepts an exposure, whichever device it is of.
    fn is_accepted(&self, exposure: &Exposure) -> bool {
        let policy = self.changes.host().guests.policy();
        policy.consent(exposure.function).is_some()
    }

    /// Tells the workers of all VMs, and waits for none.
    fn alarm(self: &Arc<Self>, alarm: &Alarm) {
        for at in self.changes.host().guests.sockets() {
            self.deliver(at, |inbox| inbox.alarm(alarm));
        }
        lock(&self.inboxes).retain(|_, (_, inbox)| !inbox.is_closed());
    }

    /// Leaves something for the worker of a VM, and starts one if there is none.
    fn deliver(self: &Arc<Self>, at: NamedSocket, leave: impl Fn(&Inbox) -> bool) {
        let mut inboxes = lock(&self.inboxes);
        let known = inboxes.get(&at.socket);
        if known.is_some_and(|(_, inbox)| leave(inbox)) {
            return;
        }
        let inbox = Arc::new(Inbox::default());
        leave(&inbox);
        let world = Arc::new(Vm {
            shared: Arc::clone(self),
            at: at.clone(),
        });
        match Worker::start(at.name.clone(), world, Arc::clone(&inbox)) {
            Ok(()) => drop(inboxes.insert(at.socket, (at.name, inbox))),
            Err(error) => eprintln!("p2pctl: cannot start a thread for {}: {error}", at.name),
        }
    }

    /// The VMs whose devices are closed or away.
    fn at_work(&self) -> Vec<String> {
        let inboxes = lock(&self.inboxes);
        let at_work = inboxes.values().filter(|(_, inbox)| !inbox.is_at_rest());
        at_work.map(|(name, _)| name.clone()).collect()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A VM, and the host that it is on.
struct Vm {
    shared: Arc<Shared>,
    at: NamedSocket,
}

impl Vm {
    fn regroup(&self) -> Regroup<'_> {
        let host = self.shared.changes.host();
        Regroup::new(&host.host, &[], host.state.clone())
    }
}

impl World for Vm {
    fn reach(&self, patience: Duration) -> Result<Guest, VmmError> {
        self.shared.changes.host().guests.reach(&self.at, patience)
    }

    fn look(&self) -> Option<Snapshot> {
        let source = Source::load(&self.shared.global).ok()?;
        Some(Snapshot::of(Arc::new(source.host.into_topology())))
    }

    fn activity(&self) -> (bool, u64) {
        self.shared.changes.activity()
    }

    fn given_back(&self, device: &VmDevice) -> Option<u64> {
        self.shared.changes.given_back(device)
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

    fn tellings(&self) -> SyncSender<Telling> {
        self.shared.tellings.clone()
    }
}
