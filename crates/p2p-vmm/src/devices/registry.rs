//! The devices in the guest, with the state of each, and the events that they emit.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hotplug::lifecycle::{Effect, Event as Step, Notice, Refused, State};
use hotplug::{Slot, SlotBus};
use iommu_group::assignment::{DeviceInfo, Exposed};
use iommu_group::{Address, Sbdf};
use p2p_vfio::{AssignedDevice, DeviceEvent};
use thiserror::Error;
use vmm_api::{DeviceConfig, Event};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::contexts::Contexts;
use super::events::DeviceEvents;
use super::slot_contents::{Guest, SlotContents};
use crate::error::VmmError;
use crate::lock::lock;

/// Time for the guest to eject a device that the host wants back. The process that unbinds the device waits in the
/// kernel until the device is released.
const HOST_TIMEOUT: Duration = Duration::from_secs(30);

/// How a device is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RemoveOptions {
    /// Time for the guest to eject it.
    pub(crate) timeout: Duration,
    /// Whether it is removed by force after that time.
    pub(crate) force: bool,
}

/// A device cannot be removed.
#[derive(Debug, PartialEq, Eq, Error)]
pub(crate) enum RemoveError {
    #[error("there is no device {0:?}")]
    Unknown(String),
    #[error("cannot remove {id:?} now: {why}")]
    Refused { id: String, why: Refused },
}

/// A device of the VM.
pub(super) struct GuestDevice {
    /// The requested configuration; it has a name.
    pub(super) config: DeviceConfig,
    pub(super) info: DeviceInfo,
    pub(super) state: State,
    /// The slot of the port directly above it.
    pub(super) slot: Slot,
    /// The slot that is announced to the guest when the device is plugged: its own, or that of the switch that is
    /// plugged with it.
    pub(super) announced_slot: Slot,
    /// Its first address in the guest.
    pub(super) guest: Sbdf,
    /// When the unplug request times out.
    deadline: Option<Instant>,
    /// Whether it is removed by force then.
    force: bool,
    /// `None` once it is closed.
    pub(super) device: Option<Arc<Mutex<AssignedDevice>>>,
}

impl GuestDevice {
    pub(super) fn new(config: DeviceConfig, info: DeviceInfo, plugged: SlotContents) -> Self {
        Self {
            config,
            info,
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
    /// Switches without members that the guest was requested to eject.
    pub(super) empty_switches: BTreeSet<u8>,
    pub(super) pending_events: Vec<Event>,
    /// Readable when [`Devices::process_events`] has something to do.
    wake: Arc<Epoll>,
    /// Whether a device could not be closed yet.
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

    /// Adds or removes the VFIO events of a device in `wake`.
    pub(super) fn watch_device(
        &self,
        assigned: &GuestDevice,
        operation: fn() -> ControlOperation,
    ) -> io::Result<()> {
        let Some(device) = &assigned.device else {
            return Ok(());
        };
        let device = lock(device);
        let mut events = device.notices();
        events.try_for_each(|event| self.watch(event, operation()))
    }

    /// When [`process_events`](Self::process_events) must be called at the latest.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        /// When to check again whether a vCPU has released a device.
        const SOON: Duration = Duration::from_millis(2);
        let soon = self.close_pending.then(|| Instant::now() + SOON);
        self.list
            .iter()
            .filter_map(|entry| entry.deadline)
            .chain(soon)
            .chain(self.events.deadline())
            .min()
    }

    /// Processes events of the guest and of the host, and expired deadlines. Returns the events to publish since the
    /// last call.
    pub(crate) fn process_events(&mut self) -> Vec<Event> {
        for entry in &self.list {
            if let Some(device) = &entry.device {
                lock(device).process_events();
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

    /// Takes the events of all devices.
    pub(super) fn take_events(&mut self, now: Instant) {
        let taken = self.events.take(now);
        for (sbdf, event) in taken.events {
            self.take_event(sbdf, event);
        }
        for (sbdf, count) in taken.suppressed {
            self.emit_suppressed(sbdf, count);
        }
    }

    /// Emits the number of suppressed events of a device.
    fn emit_suppressed(&mut self, sbdf: Sbdf, count: u64) {
        log::warn!("{sbdf}: {count} more events were suppressed");
        if let Some(entry) = self.list.iter().find(|a| a.info.sbdf == sbdf) {
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
        let assigned = self.list.iter().find(|a| a.info.sbdf == sbdf);
        let Some(id) = assigned.map(|assigned| assigned.id().to_owned()) else {
            return;
        };
        match event {
            DeviceEvent::Requested => {
                // The host does not wait for the guest, so the peer mappings are closed at once.
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

    /// Requests that the guest ejects a device that the host wants back, with a deadline for removal by force. The
    /// kernel repeats its request while it waits; a repeated request neither reaches the guest nor extends the
    /// deadline.
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

    /// Advances the state of a device. A refused step is logged.
    pub(super) fn advance(&mut self, id: &str, step: Step) {
        if let Err(error) = self.try_advance(id, step) {
            log::debug!("{error}");
        }
    }

    /// Advances the state of a device and executes the effects.
    pub(super) fn try_advance(&mut self, id: &str, step: Step) -> Result<(), RemoveError> {
        let unknown = || RemoveError::Unknown(id.to_owned());
        let at = self.list.iter().position(|entry| entry.id() == id);
        let at = at.ok_or_else(unknown)?;
        // Depends on which other devices are below the switch now.
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
                Effect::RequestUnplug => self.guest.control.request_unplug(removal_slot),
                Effect::CancelUnplug => {
                    for slot in [removal_slot, entry.slot] {
                        self.guest.control.withdraw_request(slot);
                    }
                }
                Effect::Announce => self.guest.control.announce(entry.announced_slot),
                Effect::RemoveFromGuest => surprise_remove(&self.guest, entry, removal_slot),
                Effect::Emit(notice) => self.pending_events.push(event_of(entry, notice)),
                // `close_released` closes devices in `Releasing` once no vCPU holds them. A device is opened before
                // it is in the list.
                Effect::Close | Effect::Open => {}
            }
        }
        Ok(())
    }

    /// Emits the exposures of devices: functions that they reach without the IOMMU, or that reach them. Accepted
    /// exposures are events. Exposures that depend on the root complex or on a device are logged only.
    pub(crate) fn emit_exposures(&mut self, exposures: &[Exposed]) {
        let (accepted, possible): (Vec<_>, Vec<_>) = exposures
            .iter()
            .partition(|exposed| exposed.exposure.needs_consent());
        for exposed in accepted {
            log::warn!("{exposed}");
            let mut entries = self.list.iter();
            let device = entries.find(|entry| entry.info.sbdf == exposed.device);
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

    /// The slot to eject for a device: its own, or that of the whole switch if no other device is below it.
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

    /// Closes the mappings of a device's BARs for its peers, or opens them again.
    pub(crate) fn set_revoked(&mut self, id: &str, revoked: bool) -> Result<(), VmmError> {
        let entry = self.list.iter().find(|entry| entry.id() == id);
        let entry = entry.ok_or_else(|| RemoveError::Unknown(id.to_owned()))?;
        if let Some(device) = &entry.device {
            let set = lock(device).set_revoked(revoked);
            set.map_err(VmmError::failed)?;
        }
        Ok(())
    }

    /// Requests that the guest ejects a device. With `force` it is removed when the time is over.
    pub(crate) fn remove(&mut self, id: &str, options: RemoveOptions) -> Result<(), RemoveError> {
        let RemoveOptions { timeout, force } = options;
        if force && timeout.is_zero() {
            self.try_advance(id, Step::Force)?;
            self.close_released();
            return Ok(());
        }
        self.try_advance(id, Step::Request)?;
        if let Some(entry) = self.list.iter_mut().find(|entry| entry.id() == id) {
            // A deadline beyond the range of `Instant` never expires.
            entry.deadline = Instant::now().checked_add(timeout);
            entry.force = force;
        }
        Ok(())
    }
}

/// The event for a notice of the state machine.
fn event_of(entry: &GuestDevice, notice: Notice) -> Event {
    let id = entry.id().to_owned();
    let bdf = entry.guest.to_string();
    match notice {
        Notice::Added => Event::DeviceAdded { id, bdf },
        Notice::AddFailed => Event::DeviceAddFailed {
            id,
            reason: "it could not be plugged into the guest".to_owned(),
        },
        Notice::UnplugRequested => Event::DeviceUnplugRequested { id },
        Notice::UnplugTimeout => Event::DeviceUnplugTimeout { id },
        Notice::Removed(departure) => Event::DeviceRemoved { id, bdf, departure },
    }
}

/// Surprise removal: closes the peer mappings, then removes the device from the bus, then notifies the guest.
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
