//! The controller of the VM: executes commands and publishes events.

use iommu_group::Sbdf;
use std::collections::BTreeSet;
use std::task::Poll;
use std::time::{Duration, Instant};
use vmm_api::{
    self, DeviceConfig, Event, EventLog, Failure, P2pWindows, PciDevice, RemoveDevice,
    UNSHARED_TRANSFERS, VmConfig, VmInfo,
};

use super::event_loop::EventLoop;
use super::host::{Host, VmContext};
use super::paths;
use super::pending_adds::PendingAdds;
use super::running::Running;
use super::state::{Effect, VmCommand, VmState};
use crate::devices::{self, AddContext, RemoveOptions};
use crate::error::VmmError;
use crate::exit::VmExit;

/// Default time for the guest to eject a device.
const UNPLUG_TIMEOUT: Duration = Duration::from_secs(30);

/// The VM in any of its states.
pub(super) struct VmController {
    state: VmState,
    pub(super) config: Option<VmConfig>,
    pub(super) context: VmContext,
    host: Option<Host>,
    pub(super) running: Option<Running>,
    pub(super) event_loop: EventLoop,
    pub(super) pending_adds: PendingAdds,
    events: EventLog,
    /// Functions that the VM had and no longer has. They count as its own when they arrive again.
    departed: BTreeSet<Sbdf>,
    /// Whether the operator was warned of transfers that fail silently.
    warned: bool,
}

impl VmController {
    pub(super) fn new(event_loop: EventLoop, events: EventLog, context: VmContext) -> Self {
        Self {
            state: VmState::Absent,
            config: None,
            context,
            host: None,
            running: None,
            event_loop,
            pending_adds: PendingAdds::default(),
            events,
            departed: BTreeSet::new(),
            warned: false,
        }
    }

    /// Takes the configuration of a VM.
    pub(super) fn create(&mut self, mut config: VmConfig) -> Result<(), VmmError> {
        self.state.next(VmCommand::Create)?;
        config.name_devices().map_err(Failure::from)?;
        paths::check_payload(&config.payload, &self.context.sandbox)?;
        paths::check(&config.devices)?;
        self.config = Some(config);
        self.execute(VmCommand::Create)
    }

    /// Takes all steps of `command`. If a step fails and no VM runs, the state is `Created`.
    pub(super) fn execute(&mut self, command: VmCommand) -> Result<(), VmmError> {
        let (next, effects) = self.state.next(command)?;
        self.emit_before(command);
        for effect in effects {
            if let Err(error) = self.perform(*effect) {
                if self.running.is_none() && self.config.is_some() {
                    self.state = VmState::Created;
                }
                return Err(error);
            }
        }
        self.state = next;
        self.emit_after(command);
        Ok(())
    }

    fn perform(&mut self, effect: Effect) -> Result<(), VmmError> {
        match effect {
            // `create` has stored the configuration.
            Effect::Describe => Ok(()),
            Effect::Start => self.start(),
            Effect::Stop => {
                if let Some(running) = self.running.take() {
                    let events = running.stop(&mut self.event_loop);
                    self.emit(events);
                }
                Ok(())
            }
            Effect::Forget => {
                let devices = self.config.iter().flat_map(|config| &config.devices);
                for function in devices.filter_map(paths::function) {
                    self.context.preopened.give_up(function);
                }
                self.config = None;
                self.host = None;
                self.departed.clear();
                Ok(())
            }
            Effect::Halt => self.guest()?.pause().map_err(VmmError::failed),
            Effect::Continue => {
                self.guest()?.resume();
                Ok(())
            }
            Effect::PressPowerButton => {
                self.guest()?.machine.power_button();
                Ok(())
            }
        }
    }

    fn guest(&self) -> Result<&Running, Failure> {
        self.running.as_ref().ok_or(Failure::NotRunning)
    }

    fn start(&mut self) -> Result<(), VmmError> {
        let config = self.config.as_ref().ok_or(Failure::NotCreated)?;
        // At every start, because the host may have changed, and before anything is opened: a refusal changes nothing.
        let plan = devices::plan_devices(&config.devices, &self.context.host_reader)?;
        let host = match &mut self.host {
            Some(host) => host,
            none => none.insert(Host::open(config)?),
        };
        let running = Running::start(host, &self.context, config, plan, &mut self.event_loop)?;
        self.running = Some(running);
        self.warn();
        Ok(())
    }

    /// Warns once of transfers between devices that are not peers, if this guest permits them.
    fn warn(&mut self) {
        let running = self.running.as_ref().filter(|_| !self.warned);
        if running.is_some_and(|running| running.machine.unshared_transfers_fail_silently()) {
            log::warn!("{UNSHARED_TRANSFERS}");
            self.warned = true;
        }
    }

    fn emit_before(&self, command: VmCommand) {
        let event = match command {
            VmCommand::Boot => Event::VmBooting,
            VmCommand::Pause => Event::VmPausing,
            VmCommand::Resume => Event::VmResuming,
            VmCommand::Reboot => Event::VmRebooting,
            VmCommand::Create
            | VmCommand::Shutdown
            | VmCommand::Delete
            | VmCommand::PowerButton => return,
        };
        self.events.publish(&event);
    }

    fn emit_after(&self, command: VmCommand) {
        let event = match command {
            VmCommand::Boot => Event::VmBooted,
            VmCommand::Pause => Event::VmPaused,
            VmCommand::Resume => Event::VmResumed,
            VmCommand::Reboot => Event::VmRebooted,
            VmCommand::Shutdown => Event::VmShutdown,
            VmCommand::Delete => Event::VmDeleted,
            VmCommand::Create | VmCommand::PowerButton => return,
        };
        self.events.publish(&event);
    }

    /// The requested end of the guest, if there is one.
    pub(super) fn ended(&self) -> Option<VmExit> {
        self.running.as_ref().and_then(Running::ended)
    }

    /// Whether there is a guest.
    pub(super) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Processes events of devices and expired deadlines.
    pub(super) fn process_events(&mut self) {
        let Some(running) = &mut self.running else {
            return;
        };
        let events = running.machine.devices.process_events();
        self.emit(events);
    }

    /// Publishes events of devices. Removed devices are dropped from the configuration.
    fn emit(&mut self, events: Vec<Event>) {
        for event in events {
            if let (Event::DeviceRemoved { id, .. }, Some(config)) = (&event, &mut self.config) {
                let function = take_device(config, id).and_then(|device| paths::function(&device));
                if let Some(function) = function {
                    self.context.preopened.give_up(function);
                    self.departed.insert(function);
                }
            }
            self.events.publish(&event);
        }
    }

    /// When [`process_events`](Self::process_events) must be called at the latest.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let running = self.running.as_ref();
        let devices = running.and_then(|running| running.machine.devices.deadline());
        devices
            .into_iter()
            .chain(self.pending_adds.deadline())
            .min()
    }

    pub(super) fn info(&self) -> Result<VmInfo, Failure> {
        let config = self.config.clone().ok_or(Failure::NotCreated)?;
        Ok(VmInfo {
            state: match self.state {
                VmState::Absent => return Err(Failure::NotCreated),
                VmState::Created => vmm_api::VmState::Created,
                VmState::Running => vmm_api::VmState::Running,
                VmState::Paused => vmm_api::VmState::Paused,
            },
            memory_actual_size: config.memory.size_bytes(),
            config,
            device_tree: self
                .running
                .as_ref()
                .map(|running| running.machine.device_tree()),
        })
    }

    pub(super) fn counters(&self) -> Result<vmm_api::Counters, Failure> {
        Ok(self.guest()?.machine.counters())
    }

    /// Adds a device to the guest, if there is one, and to the configuration. Pending while the guest ejects an empty
    /// switch, until `deadline`.
    pub(super) fn add_device(
        &mut self,
        device: DeviceConfig,
        deadline: Instant,
    ) -> Result<Poll<Option<PciDevice>>, VmmError> {
        let config = self.config.as_ref().ok_or(Failure::NotCreated)?;
        let mut wanted = config.clone();
        wanted.devices.push(device);
        wanted.name_devices().map_err(Failure::from)?;
        paths::check(&wanted.devices)?;
        let Some(running) = &mut self.running else {
            self.config = Some(wanted);
            return Ok(Poll::Ready(None));
        };
        let device = wanted.devices.last().ok_or(Failure::NotCreated)?;
        let id = device.id.clone().unwrap_or_default();
        let devices = &mut running.machine.devices;
        let context = AddContext {
            host: &self.context.host_reader,
            departed: &self.departed,
        };
        let added = devices.add(device, &context, deadline);
        if let Ok(Poll::Ready(_)) = added {
            self.config = Some(wanted);
            self.warn();
        }
        self.process_events();
        let in_guest = |bdf: Sbdf| {
            let bdf = bdf.to_string();
            Some(PciDevice { id, bdf })
        };
        Ok(added?.map(in_guest))
    }

    /// Opens or closes the mappings of a device's BARs for its peers.
    pub(super) fn set_windows(&mut self, request: &P2pWindows) -> Result<(), VmmError> {
        let running = self.running.as_mut().ok_or(Failure::NotRunning)?;
        let devices = &mut running.machine.devices;
        devices.set_revoked(&request.id, !request.open)?;
        Ok(())
    }

    /// Requests that the guest ejects a device. Without a guest the device is dropped from the configuration at once.
    pub(super) fn remove_device(&mut self, request: &RemoveDevice) -> Result<(), VmmError> {
        let config = self.config.as_mut().ok_or(Failure::NotCreated)?;
        let Some(running) = &mut self.running else {
            let device = take_device(config, &request.id);
            let device = device.ok_or_else(|| Failure::UnknownDevice(request.id.clone()))?;
            if let Some(function) = paths::function(&device) {
                self.context.preopened.give_up(function);
            }
            return Ok(());
        };
        let force = request.force;
        let deadline = if force {
            Duration::ZERO
        } else {
            UNPLUG_TIMEOUT
        };
        let timeout = request.timeout_ms.map_or(deadline, Duration::from_millis);
        let options = RemoveOptions { timeout, force };
        running.machine.devices.remove(&request.id, options)?;
        self.process_events();
        Ok(())
    }
}

/// Removes a device from a configuration.
fn take_device(config: &mut VmConfig, id: &str) -> Option<DeviceConfig> {
    let mut ids = config.devices.iter().map(|device| device.id.as_deref());
    let at = ids.position(|other| other == Some(id))?;
    Some(config.devices.remove(at))
}
