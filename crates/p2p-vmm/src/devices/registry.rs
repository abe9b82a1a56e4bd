//! The devices that the guest has, each with its place in its life, and what they tell.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hotplug::lifecycle::{Effect, Event as Step, Notice, Refused, State};
use hotplug::{DeviceConfig, Event, Slot, SlotBus};
use iommu_group::Sbdf;
use p2p_vfio::{Address, AssignedDevice, Candidate, DeviceEvent, Exposed};
use thiserror::Error;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::contexts::Contexts;
use super::events::DeviceEvents;
use super::slot_contents::{Guest, SlotContents};
use crate::lock::lock;

/// How long the guest may take to let go of a device that the host wants back: whoever unbinds it waits in the kernel,
/// and nothing ends that wait but the device.
const HOST_TIMEOUT: Duration = Duration::from_secs(30);

/// How a device is to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RemoveOptions {
    /// How long the guest may take.
    pub(crate) timeout: Duration,
    /// Whether it is taken away when the time is up.
    pub(crate) force: bool,
}

/// Why a device does not go.
#[derive(Debug, PartialEq, Eq, Error)]
pub(crate) enum RemoveError {
    #[error("there is no device {0:?}")]
    Unknown(String),
    #[error("{id:?} cannot go now: {why}")]
    Refused { id: String, why: Refused },
}

/// A device of the VM.
pub(super) struct GuestDevice {
    /// What was asked for; it has a name.
    pub(super) config: DeviceConfig,
    pub(super) candidate: Candidate,
    pub(super) state: State,
    /// The slot of the port directly above it.
    pub(super) slot: Slot,
    /// The slot in which the guest finds it when it comes: its own, or that of the switch that comes with it.
    pub(super) announced_slot: Slot,
    /// Its address in the guest, as the guest found it first.
    pub(super) guest: Sbdf,
    /// When its unplug is overdue.
    deadline: Option<Instant>,
    /// Whether it is taken away then.
    force: bool,
    /// `None` as soon as it is closed.
    pub(super) device: Option<Arc<Mutex<AssignedDevice>>>,
}

impl GuestDevice {
    pub(super) fn new(config: DeviceConfig, candidate: Candidate, plugged: SlotContents) -> Self {
        Self {
            config,
            candidate,
            state: State::Plugged,
            slot: plugged.slot,
            announced_slot: plugged.announced_slot,
            guest: plugged.guest,
            deadline: None,
            force: false,
            device: Some(plugged.device),
        }
    }

    pub(super) fn id(&self) -> &str {
        self.config.id.as_deref().unwrap_or_default()
    }

    /// Whether the guest has it.
    pub(super) fn is_in_guest(&self) -> bool {
        matches!(
            self.state,
            State::Plugged | State::UnplugRequested | State::Overdue
        )
    }
}

/// The assigned devices of a running VM.
pub(crate) struct Devices {
    pub(super) list: Vec<GuestDevice>,
    pub(super) contexts: Contexts,
    pub(super) guest: Guest,
    pub(super) events: Arc<DeviceEvents>,
    /// Switches whose last member has gone and that the guest was asked to let go of.
    pub(super) empty_switches: BTreeSet<u8>,
    pub(super) pending_events: Vec<Event>,
    /// Readable when [`Devices::process_events`] has something to do.
    wake: Arc<Epoll>,
    /// A device could not be closed yet.
    pub(super) close_pending: bool,
}

impl Devices {
    pub(super) fn new(
        guest: Guest,
        contexts: Contexts,
        list: Vec<GuestDevice>,
        events: Arc<DeviceEvents>,
    ) -> anyhow::Result<Self> {
        let this = Self {
            list,
            contexts,
            guest,
            events,
            empty_switches: BTreeSet::new(),
            pending_events: Vec::new(),
            wake: Arc::new(Epoll::new()?),
            close_pending: false,
        };
        this.watch(this.events.wake(), ControlOperation::Add)?;
        this.watch(this.guest.control.wake(), ControlOperation::Add)?;
        for assigned in &this.list {
            this.watch_device(assigned, || ControlOperation::Add)?;
        }
        Ok(this)
    }

    /// Readable when [`process_events`](Self::process_events) has something to do.
    pub(crate) fn wake(&self) -> &Arc<Epoll> {
        &self.wake
    }

    fn watch(&self, fd: &impl std::os::fd::AsRawFd, operation: ControlOperation) -> io::Result<()> {
        let event = EpollEvent::new(EventSet::IN, 0);
        self.wake.ctl(operation, fd.as_raw_fd(), event)
    }

    /// Waits for what the host tells of a device, or does so no more.
    pub(super) fn watch_device(
        &self,
        assigned: &GuestDevice,
        operation: fn() -> ControlOperation,
    ) -> io::Result<()> {
        let Some(device) = &assigned.device else {
            return Ok(());
        };
        let device = lock(device);
        let mut notices = device.notices();
        notices.try_for_each(|event| self.watch(event, operation()))
    }

    /// When [`process_events`](Self::process_events) is to be called at the latest.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        /// How soon to look again whether a vCPU has let go of a device.
        const SOON: Duration = Duration::from_millis(2);
        let soon = self.close_pending.then(|| Instant::now() + SOON);
        self.list
            .iter()
            .filter_map(|entry| entry.deadline)
            .chain(soon)
            .chain(self.events.deadline())
            .min()
    }

    /// Does what the guest, the host or the time asks for; what there is to tell since the last time.
    pub(crate) fn process_events(&mut self) -> Vec<Event> {
        for entry in &self.list {
            if let Some(device) = &entry.device {
                lock(device).heed();
            }
        }
        let now = Instant::now();
        self.take_events(now);
        self.process_ejected();
        let is_overdue =
            |entry: &&GuestDevice| entry.deadline.is_some_and(|deadline| deadline <= now);
        let overdue = self.list.iter().filter(is_overdue);
        let overdue: Vec<_> = overdue
            .map(|entry| (entry.id().to_owned(), entry.force))
            .collect();
        for (id, force) in overdue {
            let step = if force { Step::Force } else { Step::Deadline };
            self.advance(&id, step);
        }
        self.close_released();
        std::mem::take(&mut self.pending_events)
    }

    /// Takes what devices have to tell.
    pub(super) fn take_events(&mut self, now: Instant) {
        let taken = self.events.take(now);
        for (sbdf, event) in taken.events {
            self.take_event(sbdf, event);
        }
        for (sbdf, count) in taken.suppressed {
            self.emit_suppressed(sbdf, count);
        }
    }

    /// A device told more than it may.
    fn emit_suppressed(&mut self, sbdf: Sbdf, count: u64) {
        log::warn!("{sbdf}: {count} more events were not told");
        if let Some(entry) = self.list.iter().find(|a| a.candidate.sbdf == sbdf) {
            let id = entry.id().to_owned();
            self.pending_events
                .push(Event::DeviceEventsSuppressed { id, count });
        }
    }

    fn take_event(&mut self, sbdf: Sbdf, event: DeviceEvent) {
        match event {
            DeviceEvent::Reset | DeviceEvent::RouteRestored { .. } => {
                log::info!("{sbdf}: {event}");
            }
            DeviceEvent::Requested | DeviceEvent::RouteDegraded { .. } => {
                log::warn!("{sbdf}: {event}");
            }
            _ => log::error!("{sbdf}: {event}"),
        }
        let assigned = self.list.iter().find(|a| a.candidate.sbdf == sbdf);
        let Some(id) = assigned.map(|assigned| assigned.id().to_owned()) else {
            return;
        };
        match event {
            DeviceEvent::Requested => {
                // The host does not wait for the guest: no peer aims at the device from here on.
                if let Err(error) = self.set_revoked(&id, true) {
                    log::error!("{error:#}");
                }
                self.return_to_host(&id, Instant::now());
            }
            DeviceEvent::Reset => {}
            DeviceEvent::RouteDegraded { bar, to, .. } => {
                let (reason, gpa) = (event.to_string(), Some(to.value()));
                let moved = id.clone();
                self.pending_events.push(Event::DeviceWindowMoved {
                    id: moved,
                    bar,
                    gpa,
                });
                self.pending_events
                    .push(Event::DeviceRouteDegraded { id, reason });
            }
            DeviceEvent::RouteRestored {
                bar, bus_address, ..
            } => {
                let gpa = Some(bus_address.value());
                self.pending_events
                    .push(Event::DeviceWindowMoved { id, bar, gpa });
            }
            event => self.pending_events.push(Event::DeviceError {
                id,
                reason: event.to_string(),
            }),
        }
    }

    /// The host wants a device back: the guest is asked for it, and loses it if it takes too long. The kernel asks again
    /// while it waits; that neither asks the guest twice nor gives it more time.
    fn return_to_host(&mut self, id: &str, now: Instant) {
        let device = self.list.iter().find(|entry| entry.id() == id);
        if device.is_some_and(|entry| entry.state != State::UnplugRequested) {
            self.advance(id, Step::Request);
        }
        let device = self.list.iter_mut().find(|entry| entry.id() == id);
        if let Some(entry) = device.filter(|entry| entry.state == State::UnplugRequested) {
            let latest = now + HOST_TIMEOUT;
            entry.deadline = Some(entry.deadline.map_or(latest, |asked| asked.min(latest)));
            entry.force = true;
        }
    }

    /// Lets something happen to a device that it may refuse.
    pub(super) fn advance(&mut self, id: &str, step: Step) {
        if let Err(error) = self.try_advance(id, step) {
            log::debug!("{error}");
        }
    }

    /// Lets something happen to a device, and carries out what follows.
    pub(super) fn try_advance(&mut self, id: &str, step: Step) -> Result<(), RemoveError> {
        let unknown = || RemoveError::Unknown(id.to_owned());
        let at = self.list.iter().position(|entry| entry.id() == id);
        let at = at.ok_or_else(unknown)?;
        // Which slot the guest is asked for depends on who else is below the switch now.
        let removal_slot = self.removal_slot(at).ok_or_else(unknown)?;
        let entry = self.list.get_mut(at).ok_or_else(unknown)?;
        let next = entry.state.next(step);
        let (state, effects) = next.map_err(|why| RemoveError::Refused {
            id: id.to_owned(),
            why,
        })?;
        entry.state = state;
        entry.deadline = None;
        for effect in effects {
            match effect {
                Effect::Ask => self.guest.control.request_unplug(removal_slot),
                Effect::Withdraw => {
                    for slot in [removal_slot, entry.slot] {
                        self.guest.control.withdraw_request(slot);
                    }
                }
                Effect::Announce => self.guest.control.announce(entry.announced_slot),
                Effect::Vanish => surprise_remove(&self.guest, entry, removal_slot),
                Effect::Tell(notice) => self.pending_events.push(event_of(entry, notice)),
                // What is in `Releasing` is closed as soon as nobody holds it; what is to be opened is not here yet.
                Effect::Close | Effect::Open => {}
            }
        }
        Ok(())
    }

    /// Says which functions devices reach without the IOMMU, and who reaches them so. What is accepted is an event; what
    /// is up to the root complex, or to a device, is in the log.
    pub(crate) fn emit_exposures(&mut self, exposures: &[Exposed]) {
        let (accepted, possible): (Vec<_>, Vec<_>) = exposures
            .iter()
            .partition(|exposed| exposed.exposure.needs_consent());
        for exposed in accepted {
            log::warn!("{exposed}");
            let mut entries = self.list.iter();
            let device = entries.find(|entry| entry.candidate.sbdf == exposed.device);
            self.pending_events.push(Event::DeviceExposed {
                id: device
                    .map(|entry| entry.id().to_owned())
                    .unwrap_or_default(),
                function: exposed.exposure.function.to_string(),
                reason: exposed.to_string(),
            });
        }
        if !possible.is_empty() {
            let functions = possible.iter().map(|one| one.exposure.function);
            let functions: BTreeSet<Sbdf> = functions.collect();
            let functions: Vec<String> = functions.iter().map(Sbdf::to_string).collect();
            log::warn!(
                "the root complex, or the device they are in, may route to these without the IOMMU: {}",
                functions.join(" ")
            );
        }
    }

    /// The slot that goes with a device: its own, or that of the whole switch if nobody else is below it.
    pub(super) fn removal_slot(&self, at: usize) -> Option<Slot> {
        let slot = self.list.get(at)?.slot;
        let SlotBus::Switch(root) = slot.bus() else {
            return Some(slot);
        };
        let neighbours = self.list.iter().enumerate();
        let mut neighbours = neighbours.filter(|(other, _)| *other != at);
        if neighbours.any(|(_, entry)| entry.is_in_guest() && entry.slot.bus() == slot.bus()) {
            return Some(slot);
        }
        Slot::new(SlotBus::Root, root)
    }

    /// Takes the windows of a device from its peers, or gives them back.
    pub(crate) fn set_revoked(&mut self, id: &str, revoked: bool) -> anyhow::Result<()> {
        let entry = self.list.iter().find(|entry| entry.id() == id);
        let entry = entry.ok_or_else(|| RemoveError::Unknown(id.to_owned()))?;
        if let Some(device) = &entry.device {
            lock(device).set_revoked(revoked)?;
        }
        Ok(())
    }

    /// Asks the guest to let go of a device, and takes it away when its time is up if that is wanted.
    pub(crate) fn remove(&mut self, id: &str, options: RemoveOptions) -> Result<(), RemoveError> {
        let RemoveOptions { timeout, force } = options;
        if force && timeout.is_zero() {
            self.try_advance(id, Step::Force)?;
            self.close_released();
            return Ok(());
        }
        self.try_advance(id, Step::Request)?;
        if let Some(entry) = self.list.iter_mut().find(|entry| entry.id() == id) {
            // A time beyond all times is none.
            entry.deadline = Instant::now().checked_add(timeout);
            entry.force = force;
        }
        Ok(())
    }
}

/// What those who watch the VM are told.
fn event_of(entry: &GuestDevice, notice: Notice) -> Event {
    let id = entry.id().to_owned();
    let bdf = entry.guest.to_string();
    match notice {
        Notice::Added => Event::DeviceAdded { id, bdf },
        Notice::AddFailed => Event::DeviceAddFailed {
            id,
            reason: "it could not be given to the guest".to_owned(),
        },
        Notice::UnplugRequested => Event::DeviceUnplugRequested { id },
        Notice::UnplugTimeout => Event::DeviceUnplugTimeout { id },
        Notice::Removed(departure) => Event::DeviceRemoved { id, bdf, departure },
    }
}

/// Surprise removal: the windows to the peers close first, then the guest finds nothing, then it is told.
fn surprise_remove(guest: &Guest, entry: &GuestDevice, removal_slot: Slot) {
    if let Some(device) = &entry.device
        && let Err(error) = lock(device).detach()
    {
        log::error!("{error}");
    }
    if guest.control.remove(removal_slot) {
        guest.control.rescan(removal_slot.bus());
    }
}
