//! The thread that handles drift for one VM. It does not block: other threads make the requests to the VMM.
//!
//! ```text
//! alarm ─▶ get the VM's devices ─▶ close the affected ones ─▶ check the host ─▶ open, or unplug and plug
//! ```
//! A VMM that does not answer is asked until it answers or is gone. The thread ends when nothing is left to do.

mod check;
mod outcome;
mod request;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::thread;
use std::time::{Duration, Instant};

use hotplug::regroup::{DeviceFacts, VmDevice, VmmError, WithheldDevice};
use iommu_group::{Exposure, Sbdf};

use super::super::guests::Guest;
use super::assessment::Alarm;
use super::emitter::{DriftEvent, Emitter};
use super::entry::{AGAIN, Entry, patience};
use super::inbox::{Inbox, Message};
use super::response::{Action, Event, State};
use super::snapshot::Snapshot;

/// Timeout for returning a device. A VMM with much memory takes seconds.
const PLUG: Duration = Duration::from_secs(30);

/// Interval of checks whether a guest has released a device that it kept.
const LOOK: Duration = Duration::from_secs(1);

/// Longest time between checks for changes.
const REST: Duration = Duration::from_millis(250);

/// Number of failed contacts after which a VMM counts as gone.
const GONE: u32 = 3;

/// Interface of a worker to the host and the VM.
pub(super) trait WorkerEnv: Send + Sync {
    /// The VM. Each request to its VMM times out after `patience`.
    fn reach(&self, patience: Duration) -> Result<Guest, VmmError>;

    /// The current host; `None` if it cannot be read.
    fn scan(&self) -> Option<Snapshot>;

    /// Whether a transaction is running, and how many have started.
    fn activity(&self) -> (bool, u64);

    /// The transaction count when a transaction last returned this device.
    fn given_back(&self, device: &VmDevice) -> Option<u64>;

    /// Whether the operator accepts an exposure.
    fn is_accepted(&self, device: &VmDevice, exposure: &Exposure) -> bool;

    /// Records that a device is kept from the VM, so that a later daemon returns it.
    fn withhold(&self, device: &VmDevice, good: &DeviceFacts) -> Result<(), String>;

    /// Removes that record.
    fn release(&self, id: &str) -> Result<(), String>;

    /// Whether the daemon has ended.
    fn has_ended(&self) -> bool;

    /// Queue of the events to report.
    fn drift_events(&self) -> SyncSender<DriftEvent>;
}

pub(super) struct Worker {
    vm: String,
    env: Arc<dyn WorkerEnv>,
    inbox: Arc<Inbox>,
    entries: BTreeMap<String, Entry>,
    /// The change to handle as soon as the VM's devices are known.
    alarm: Option<Alarm>,
    /// Whether more changed after the VM was asked.
    is_newer: bool,
    /// Devices that were handled before the VM listed them.
    handled: BTreeSet<String>,
    /// Devices that an earlier daemon took, until it is known whether the VM has them.
    recovered: Vec<WithheldDevice>,
    /// Names of devices that are recorded as kept from the VM.
    noted: BTreeSet<String>,
    /// Functions of the VM, from its last answer.
    functions: BTreeSet<Sbdf>,
    is_asked: bool,
    ask_at: Instant,
    /// How often the VM did not list its devices, or was gone.
    silent: u32,
    gone: u32,
    emitter: Emitter,
}

impl Worker {
    /// Starts the thread for a VM.
    pub(super) fn start(
        vm: String,
        env: Arc<dyn WorkerEnv>,
        inbox: Arc<Inbox>,
    ) -> std::io::Result<()> {
        let emitter = Emitter::new(env.drift_events());
        let worker = Self {
            vm,
            env,
            inbox,
            entries: BTreeMap::new(),
            alarm: None,
            is_newer: false,
            handled: BTreeSet::new(),
            recovered: Vec::new(),
            noted: BTreeSet::new(),
            functions: BTreeSet::new(),
            is_asked: false,
            ask_at: Instant::now(),
            silent: 0,
            gone: 0,
            emitter,
        };
        let thread = thread::Builder::new().name("drift-vm".to_owned());
        thread.spawn(move || worker.run()).map(drop)
    }

    fn run(mut self) {
        let mut wait = Duration::ZERO;
        loop {
            let mail = self.inbox.take(wait);
            if self.env.has_ended() {
                return;
            }
            let now = Instant::now();
            self.recover(mail.withheld);
            if let Some(alarm) = mail.alarm {
                self.alarmed(alarm, now);
            }
            for message in mail.messages {
                self.receive(message, now);
            }
            self.process_transactions();
            self.ask(now);
            self.begin(now);
            let has_checked = self.check(now);
            self.release();
            self.entries.retain(|_, entry| !entry.is_over(now));
            let is_waiting = self.alarm.is_some() || !self.recovered.is_empty() || self.is_asked;
            let is_idle = self.entries.is_empty() && !is_waiting;
            if is_idle && self.inbox.close_if_empty() {
                return;
            }
            wait = if has_checked { Duration::ZERO } else { REST };
            let at_rest = |entry: &Entry| entry.is_at_rest();
            self.inbox
                .set_at_rest(!is_waiting && self.entries.values().all(at_rest));
        }
    }

    fn alarmed(&mut self, alarm: Alarm, now: Instant) {
        let transactions = self.transactions();
        let known: Vec<VmDevice> = self.entries.values().map(|e| e.device.clone()).collect();
        for (device, why) in alarm.affected(&known) {
            if let Some(entry) = self.entries.get_mut(&device.id) {
                entry.drift(&alarm.before, why, transactions, now);
                self.handled.insert(device.id.clone());
            }
        }
        match &mut self.alarm {
            Some(earlier) => earlier.merge(alarm),
            none => *none = Some(alarm),
        }
        self.is_newer = true;
        self.ask_at = now;
    }

    /// Takes over devices that an earlier daemon took from the VM.
    fn recover(&mut self, withheld: Vec<WithheldDevice>) {
        let ids = withheld.iter().map(|other| other.device.id.clone());
        self.noted.extend(ids);
        self.recovered.extend(withheld);
    }

    /// Removes the records of devices that are no longer kept from the VM.
    fn release(&mut self) {
        let is_withheld = |id: &String| {
            let recovered = self.recovered.iter().any(|other| other.device.id == *id);
            recovered || self.entries.get(id).is_some_and(Entry::is_withheld)
        };
        let (withheld, back) = self.noted.iter().cloned().partition(is_withheld);
        self.noted = withheld;
        let back: BTreeSet<String> = back;
        for id in back {
            let (env, vm) = (Arc::clone(&self.env), self.vm.clone());
            let release = move || {
                if let Err(error) = env.release(&id) {
                    eprintln!("p2pctl: cannot record that {vm} has {id}: {error}");
                }
            };
            let thread = thread::Builder::new().name("drift-request".to_owned());
            if let Err(error) = thread.spawn(release) {
                eprintln!("p2pctl: cannot start a thread for {}: {error}", self.vm);
            }
        }
    }

    fn receive(&mut self, message: Message, now: Instant) {
        match message {
            Message::Devices(result) => {
                self.is_asked = false;
                match result {
                    Ok(devices) => self.has(&devices, now),
                    Err(error) => self.has_not_said(&error, now),
                }
            }
            Message::Ended { id, action, result } => self.ended(&id, action, result, now),
        }
    }

    /// Handles the VM's list of devices.
    fn has(&mut self, devices: &[VmDevice], now: Instant) {
        (self.silent, self.gone) = (0, 0);
        self.ask_at = now + LOOK;
        self.functions = devices.iter().map(|device| device.function).collect();
        for entry in self.entries.values_mut() {
            // A running action may have changed the device since.
            if entry.in_flight.is_empty() {
                let is_it = |device: &VmDevice| device.id == entry.device.id;
                let has = devices.iter().any(is_it);
                let event = if has { Event::Present } else { Event::Absent };
                entry.step(event, now);
            }
        }
        let transactions = self.transactions();
        for WithheldDevice { device, good, .. } in std::mem::take(&mut self.recovered) {
            let is_there = devices.iter().any(|other| other.id == device.id);
            let id = device.id.clone();
            let entry = || Entry::recovered(device, good, is_there, transactions, now);
            self.entries.entry(id).or_insert_with(entry);
        }
        let Some(alarm) = self.alarm.take() else {
            return;
        };
        for (device, why) in alarm.affected(devices) {
            let entry = self
                .entries
                .entry(device.id.clone())
                .or_insert_with(|| Entry::new(device.clone(), transactions, now));
            if entry.state == State::Open && !self.handled.contains(&device.id) {
                entry.device = device.clone();
                entry.drift(&alarm.before, why, transactions, now);
            }
        }
        if self.is_newer {
            self.alarm = Some(alarm);
            self.ask_at = now;
        } else {
            self.handled.clear();
        }
    }

    fn has_not_said(&mut self, error: &VmmError, now: Instant) {
        self.ask_at = now + AGAIN;
        if let VmmError::Gone { .. } = error {
            self.gone = self.gone.saturating_add(1);
            if self.gone >= GONE {
                self.alarm = None;
                self.recovered.clear();
                for entry in self.entries.values_mut() {
                    entry.step(Event::Over, now);
                }
            }
            return;
        }
        self.gone = 0;
        self.silent = self.silent.saturating_add(1);
        if self.silent == 1 {
            self.emitter
                .emit("vmm-silent", &[("vm", &self.vm), ("error", error)]);
        }
    }

    /// Devices that a transaction returned were checked by it, and it changed their dependencies intentionally.
    fn process_transactions(&mut self) {
        for entry in self.entries.values_mut() {
            let given = self.env.given_back(&entry.device);
            if let Some(given) = given.filter(|given| *given > entry.transactions) {
                entry.rebase = true;
                entry.transactions = given;
            }
        }
    }

    /// How many transactions have completed.
    fn transactions(&self) -> u64 {
        let (is_busy, begun) = self.env.activity();
        begun.saturating_sub(u64::from(is_busy))
    }

    /// Asks the VM for its devices, if something depends on the answer.
    fn ask(&mut self, now: Instant) {
        let depends = |entry: &Entry| matches!(entry.state, State::Kept | State::Away);
        let is_waiting = self.alarm.is_some() || !self.recovered.is_empty();
        let is_wanted = is_waiting || self.gone > 0 || self.entries.values().any(depends);
        if self.is_asked || !is_wanted || now < self.ask_at {
            return;
        }
        self.is_asked = true;
        self.is_newer = false;
        let env = Arc::clone(&self.env);
        let patience = patience(self.silent);
        let request = move || Message::Devices(env.reach(patience).and_then(|vm| vm.devices()));
        self.spawn(request, |error| Message::Devices(Err(error)));
    }

    /// Starts the actions of all devices.
    fn begin(&mut self, now: Instant) {
        let (is_busy, _) = self.env.activity();
        let mut begun = Vec::new();
        for (id, entry) in &mut self.entries {
            if entry.is_to_be_asked_again(now) {
                entry.step(Event::Again, now);
            }
            if let Some(action) = entry.begins(is_busy, now) {
                entry.in_flight.push(action);
                let patience = match action {
                    Action::Revoke => patience(entry.tries()),
                    _ => PLUG,
                };
                begun.push((id.clone(), action, entry.device.clone(), patience));
            }
        }
        for (id, action, device, patience) in begun {
            let good = self.entries.get(&id).map(|entry| entry.good.clone());
            let good = good.unwrap_or_default();
            if action == Action::Unplug {
                self.noted.insert(id.clone());
            }
            let env = Arc::clone(&self.env);
            let of = device.id.clone();
            let request = move || Message::Ended {
                result: request::perform(&*env, action, &device, &good, patience),
                id,
                action,
            };
            self.spawn(request, |error| Message::Ended {
                id: of,
                action,
                result: Err(error),
            });
        }
    }

    /// Makes a request in its own thread.
    fn spawn(
        &self,
        request: impl FnOnce() -> Message + Send + 'static,
        failed: impl FnOnce(VmmError) -> Message,
    ) {
        let inbox = Arc::clone(&self.inbox);
        let thread = thread::Builder::new().name("drift-request".to_owned());
        if let Err(error) = thread.spawn(move || inbox.send(request())) {
            self.inbox.send(failed(VmmError::Refused {
                vm: self.vm.clone(),
                reason: format!("cannot start a thread: {error}"),
            }));
        }
    }
}
