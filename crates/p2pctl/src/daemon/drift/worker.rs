//! One VM after drift, in a thread of its own that waits for nobody: requests to the VMM are made by other threads.
//!
//! ```text
//! alarm ─▶ ask which devices it has ─▶ close those that are concerned ─▶ check the host ─▶ open, or unplug and plug
//! ```
//! A VMM that does not answer is asked until it does or is gone. The thread ends when nothing is left to do.

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

use hotplug::regroup::{Assigned, VmmError};
use iommu_group::{Exposure, Sbdf};

use super::super::guests::Guest;
use super::assessment::Alarm;
use super::entry::{AGAIN, Entry, patience};
use super::inbox::{Inbox, Message};
use super::response::{Action, Event, State};
use super::snapshot::Snapshot;
use super::teller::{Teller, Telling};

/// How long a VMM may take to give a device back. One with much memory takes seconds.
const PLUG: Duration = Duration::from_secs(30);

/// How often is looked whether a guest has let go of what it kept.
const LOOK: Duration = Duration::from_secs(1);

/// The longest time without a look at what may have changed meanwhile.
const REST: Duration = Duration::from_millis(250);

/// How often a VMM has to be gone to be so.
const GONE: u32 = 3;

/// What a worker needs of the world.
pub(super) trait World: Send + Sync {
    /// The VM, each request to whose VMM is waited for this long at most.
    fn reach(&self, patience: Duration) -> Result<Guest, VmmError>;

    /// The host as it is now; `None` if it cannot be read.
    fn look(&self) -> Option<Snapshot>;

    /// Whether a transaction is under way, and how many have begun.
    fn activity(&self) -> (bool, u64);

    /// How many transactions had begun when one of them gave a device back last.
    fn given_back(&self, device: &Assigned) -> Option<u64>;

    /// Whether the operator accepts an exposure.
    fn is_accepted(&self, device: &Assigned, exposure: &Exposure) -> bool;

    /// Where events are told.
    fn tellings(&self) -> SyncSender<Telling>;
}

pub(super) struct Worker {
    vm: String,
    world: Arc<dyn World>,
    inbox: Arc<Inbox>,
    entries: BTreeMap<String, Entry>,
    /// What changed, until the VM has said which devices it has.
    alarm: Option<Alarm>,
    /// Whether more changed after the VM was asked.
    is_newer: bool,
    /// Devices that were seen to before the VM said that it has them.
    handled: BTreeSet<String>,
    /// Functions of the VM, as it said last.
    functions: BTreeSet<Sbdf>,
    is_asked: bool,
    ask_at: Instant,
    /// How often it has not said which devices it has, or was gone.
    silent: u32,
    gone: u32,
    teller: Teller,
}

impl Worker {
    /// Starts the thread for a VM.
    pub(super) fn start(
        vm: String,
        world: Arc<dyn World>,
        inbox: Arc<Inbox>,
    ) -> std::io::Result<()> {
        let teller = Teller::new(world.tellings());
        let worker = Self {
            vm,
            world,
            inbox,
            entries: BTreeMap::new(),
            alarm: None,
            is_newer: false,
            handled: BTreeSet::new(),
            functions: BTreeSet::new(),
            is_asked: false,
            ask_at: Instant::now(),
            silent: 0,
            gone: 0,
            teller,
        };
        let thread = thread::Builder::new().name("drift-vm".to_owned());
        thread.spawn(move || worker.run()).map(drop)
    }

    fn run(mut self) {
        let mut wait = Duration::ZERO;
        loop {
            let mail = self.inbox.take(wait);
            let now = Instant::now();
            if let Some(alarm) = mail.alarm {
                self.alarmed(alarm, now);
            }
            for message in mail.messages {
                self.receive(message, now);
            }
            self.heed_transactions();
            self.ask(now);
            self.begin(now);
            let has_checked = self.check(now);
            self.entries.retain(|_, entry| !entry.is_over(now));
            let is_idle = self.entries.is_empty() && self.alarm.is_none() && !self.is_asked;
            if is_idle && self.inbox.close_if_empty() {
                return;
            }
            wait = if has_checked { Duration::ZERO } else { REST };
            let is_at_rest = self.alarm.is_none() && !self.is_asked;
            let at_rest = |entry: &Entry| entry.is_at_rest();
            self.inbox
                .set_at_rest(is_at_rest && self.entries.values().all(at_rest));
        }
    }

    fn alarmed(&mut self, alarm: Alarm, now: Instant) {
        let transactions = self.transactions();
        let known: Vec<Assigned> = self.entries.values().map(|e| e.device.clone()).collect();
        for (device, why) in alarm.concerned(&known) {
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

    /// The VM has these devices.
    fn has(&mut self, devices: &[Assigned], now: Instant) {
        (self.silent, self.gone) = (0, 0);
        self.ask_at = now + LOOK;
        self.functions = devices.iter().map(|device| device.function).collect();
        for entry in self.entries.values_mut() {
            // What is under way may have changed it since.
            if entry.in_flight.is_empty() {
                let is_it = |device: &Assigned| device.id == entry.device.id;
                let has = devices.iter().any(is_it);
                let event = if has { Event::Present } else { Event::Absent };
                entry.step(event, now);
            }
        }
        let Some(alarm) = self.alarm.take() else {
            return;
        };
        let transactions = self.transactions();
        for (device, why) in alarm.concerned(devices) {
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
                for entry in self.entries.values_mut() {
                    entry.step(Event::Over, now);
                }
            }
            return;
        }
        self.gone = 0;
        self.silent = self.silent.saturating_add(1);
        if self.silent == 1 {
            let (vm, error) = (self.vm.clone(), error.to_string());
            self.teller
                .tell("vmm-silent", &[("vm", &vm), ("error", &error)]);
        }
    }

    /// What a transaction has given back was checked by it, and what it depends on was changed on purpose.
    fn heed_transactions(&mut self) {
        for entry in self.entries.values_mut() {
            let given = self.world.given_back(&entry.device);
            if let Some(given) = given.filter(|given| *given > entry.transactions) {
                entry.rebase = true;
                entry.transactions = given;
            }
        }
    }

    /// How many transactions are over.
    fn transactions(&self) -> u64 {
        let (is_busy, begun) = self.world.activity();
        begun.saturating_sub(u64::from(is_busy))
    }

    /// Asks which devices the VM has, if anything depends on that.
    fn ask(&mut self, now: Instant) {
        let depends = |entry: &Entry| matches!(entry.state, State::Kept | State::Away);
        let is_wanted = self.alarm.is_some() || self.gone > 0 || self.entries.values().any(depends);
        if self.is_asked || !is_wanted || now < self.ask_at {
            return;
        }
        self.is_asked = true;
        self.is_newer = false;
        let world = Arc::clone(&self.world);
        let patience = patience(self.silent);
        let request = move || Message::Devices(world.reach(patience).and_then(|vm| vm.devices()));
        self.spawn(request, |error| Message::Devices(Err(error)));
    }

    /// Begins what has to be done for each device.
    fn begin(&mut self, now: Instant) {
        let (is_busy, _) = self.world.activity();
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
            let world = Arc::clone(&self.world);
            let of = device.id.clone();
            let request = move || Message::Ended {
                result: request::perform(&*world, action, &device, patience),
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

    /// Makes a request in a thread of its own.
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
