//! The devices in the guest, with the state of each, and the events that they emit.

use std::collections::BTreeSet;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use guest_topology::Slot;
use hotplug::lifecycle::{Effect, Event as Step, Notice, Refused, State};
use iommu_group::assignment::Exposed;
use iommu_group::{Address, Sbdf};
use p2p_vfio::{DeviceEvent, DeviceSet, MemberView, SetEvent, SetEventKind};
use thiserror::Error;
use vmm_api::{DeviceConfig, Event};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use crate::error::VmmError;
use crate::slot_control::SlotControl;

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
    pub(super) state: State,
    /// Its address on the host.
    pub(super) host: Sbdf,
    /// Its first address in the guest.
    guest: Sbdf,
    /// When the unplug request times out.
    deadline: Option<Instant>,
    /// Whether it is removed by force then.
    force: bool,
}

impl GuestDevice {
    pub(super) fn new(config: DeviceConfig, member: &MemberView) -> Self {
        Self {
            config,
            state: State::Plugged,
            host: member.host,
            guest: member.guest,
            deadline: None,
            force: false,
        }
    }

    pub(super) fn id(&self) -> &str {
        self.config.id.as_deref().unwrap_or_default()
    }
}

/// The assigned devices of a running VM.
pub(crate) struct Devices {
    pub(super) list: Vec<GuestDevice>,
    pub(super) set: Arc<DeviceSet>,
    pub(super) control: Arc<SlotControl>,
    /// Switches without members that the guest was requested to eject.
    pub(super) empty_switches: BTreeSet<Slot>,
    pub(super) pending_events: Vec<Event>,
    /// Readable when [`Devices::process_events`] has something to do.
    wake: Arc<Epoll>,
    /// Whether a device could not be closed yet.
    pub(super) close_pending: bool,
}

impl Devices {
    /// The devices of a VM that is about to start. The guest finds them in their slots.
    pub(crate) fn new(
        configs: &[DeviceConfig],
        set: Arc<DeviceSet>,
        control: Arc<SlotControl>,
    ) -> anyhow::Result<Self> {
        let wake = Epoll::new()?;
        for fd in [set.event_fd().as_raw_fd(), control.wake().as_raw_fd()] {
            wake.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, 0))?;
        }
        let mut list = Vec::new();
        for member in set.members() {
            for slot in [member.announced_slot, member.slot] {
                control.occupy(slot);
            }
            let mut configs = configs.iter();
            let config = configs.find(|one| one.id.as_ref() == Some(&member.tag));
            let config = config.with_context(|| format!("{} was not requested", member.host))?;
            list.push(GuestDevice::new(config.clone(), &member));
        }
        Ok(Self {
            list,
            set,
            control,
            empty_switches: BTreeSet::new(),
            pending_events: Vec::new(),
            wake: Arc::new(wake),
            close_pending: false,
        })
    }

    /// Readable when [`process_events`](Self::process_events) has something to do.
    pub(crate) fn wake(&self) -> &Arc<Epoll> {
        &self.wake
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
            .chain(self.set.deadline())
            .min()
    }

    /// Processes events of the guest and of the host, and expired deadlines. Returns the events to publish since the
    /// last call.
    pub(crate) fn process_events(&mut self) -> Vec<Event> {
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
        for SetEvent { host, tag, kind } in self.set.process_events() {
            match kind {
                SetEventKind::Device(event) => self.take_event(host, tag, event, now),
                SetEventKind::Suppressed(count) => {
                    log::warn!("{host}: {count} more events were suppressed");
                    let suppressed = tag.map(|id| Event::DeviceEventsSuppressed { id, count });
                    self.pending_events.extend(suppressed);
                }
            }
        }
    }

    fn take_event(&mut self, host: Sbdf, id: Option<String>, event: DeviceEvent, now: Instant) {
        match event {
            DeviceEvent::Reset | DeviceEvent::RouteRestored { .. } => {
                log::info!("{host}: {event}");
            }
            DeviceEvent::Requested | DeviceEvent::RouteDegraded { .. } => {
                log::warn!("{host}: {event}");
            }
            _ => log::error!("{host}: {event}"),
        }
        let Some(id) = id else {
            return;
        };
        match event {
            DeviceEvent::Requested => {
                // The host does not wait for the guest, so the peer mappings are closed at once.
                if let Err(error) = self.set.set_revoked(&id, true) {
                    log::error!("{error}");
                }
                self.return_to_host(&id, now);
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
        // Depends on which other devices are below the switch now.
        let slots = self.set.slot_to_eject(id).zip(self.set.member(id));
        let entry = self.list.iter_mut().find(|entry| entry.id() == id);
        let entry = entry.ok_or_else(|| RemoveError::Unknown(id.to_owned()))?;
        let next = entry.state.next(step);
        let (state, effects) = next.map_err(|why| RemoveError::Refused {
            id: id.to_owned(),
            why,
        })?;
        entry.state = state;
        entry.deadline = None;
        for effect in effects {
            match (effect, &slots) {
                (Effect::RequestUnplug, Some((leaving, _))) => {
                    self.control.request_unplug(*leaving);
                }
                (Effect::CancelUnplug, Some((leaving, member))) => {
                    for slot in [*leaving, member.slot] {
                        self.control.withdraw_request(slot);
                    }
                }
                (Effect::Announce, Some((_, member))) => {
                    self.control.announce(member.announced_slot);
                }
                (Effect::RemoveFromGuest, Some((leaving, _))) => {
                    if self.control.remove(*leaving) {
                        self.control.rescan(leaving.bus());
                    }
                }
                (Effect::Emit(notice), _) => self.pending_events.push(event_of(entry, notice)),
                // `close_released` closes devices in `Releasing` once no vCPU holds them. A device is opened before
                // it is in the list, and has no slot once it is closed.
                (_, None) | (Effect::Close | Effect::Open, _) => {}
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
            let device = entries.find(|entry| entry.host == exposed.device);
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

    /// Closes the mappings of a device's BARs for its peers, or opens them again.
    pub(crate) fn set_revoked(&self, id: &str, revoked: bool) -> Result<(), VmmError> {
        if self.set.member(id).is_none() {
            return Err(RemoveError::Unknown(id.to_owned()).into());
        }
        Ok(self.set.set_revoked(id, revoked)?)
    }

    /// The set of the devices.
    pub(crate) fn set(&self) -> &DeviceSet {
        &self.set
    }

    /// Number of BAR mappings for peers.
    pub(crate) fn peer_windows(&self) -> usize {
        let windows = |entry: &GuestDevice| {
            let device = self
                .set
                .with_device(entry.id(), |one| one.peer_windows().count());
            device.unwrap_or(0)
        };
        self.list.iter().map(windows).sum()
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
