//! The owner of the VM: does what its life asks for, and tells it.

use hotplug::api::{
    Failure, P2pWindows, PciDevice, RemoveDevice, UNSHARED_TRANSFERS, VmInfo, VmState,
};
use hotplug::{DeviceConfig, Event, EventLog, VmConfig};
use iommu_group::Sbdf;
use p2p_vfio::Handed;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use super::host::{Host, HostParams};
use super::life::{Effect, Life, Verb};
use super::newcomers::Newcomers;
use super::paths;
use super::running::Running;
use super::watch::Watch;
use crate::confine::Confinement;
use crate::descriptors::Descriptors;
use crate::devices::{self, RemoveOptions, Rules};
use crate::exit::VmExit;
use crate::handed;
use crate::host_reader::HostReader;

/// How long the guest may take to let go of a device, unless said.
const UNPLUG_TIME: Duration = Duration::from_secs(30);

/// The VM, wherever it is in its life.
pub(super) struct Owner {
    life: Life,
    pub(super) config: Option<VmConfig>,
    pub(super) host_reader: Arc<HostReader>,
    pub(super) handed: Arc<Handed>,
    host: Option<Host>,
    pub(super) running: Option<Running>,
    pub(super) watch: Watch,
    pub(super) newcomers: Newcomers,
    events: EventLog,
    confinement: Arc<Confinement>,
    descriptors: Descriptors,
    growing: bool,
    /// Functions that the VM had and has no more. They count as its own when they come back.
    departed: BTreeSet<Sbdf>,
    /// The operator was warned of transfers that fail silently.
    warned: bool,
}

/// What every VM of this process has in common.
pub(super) struct OwnerParams {
    pub(super) watch: Watch,
    pub(super) events: EventLog,
    pub(super) host_reader: Arc<HostReader>,
    /// Devices that came open.
    pub(super) handed: Arc<Handed>,
    pub(super) confinement: Arc<Confinement>,
    pub(super) descriptors: Descriptors,
    /// Whether devices may come later.
    pub(super) growing: bool,
}

impl Owner {
    pub(super) fn new(params: OwnerParams) -> Self {
        let OwnerParams {
            watch,
            events,
            host_reader,
            handed,
            confinement,
            descriptors,
            growing,
        } = params;
        Self {
            life: Life::Absent,
            config: None,
            host_reader,
            handed,
            host: None,
            running: None,
            watch,
            newcomers: Newcomers::default(),
            events,
            confinement,
            descriptors,
            growing,
            departed: BTreeSet::new(),
            warned: false,
        }
    }

    /// Takes over the description of a VM.
    pub(super) fn create(&mut self, mut config: VmConfig) -> anyhow::Result<()> {
        self.life.next(Verb::Create)?;
        config.name_devices().map_err(Failure::from)?;
        paths::check_payload(&config.payload, &self.confinement)?;
        paths::check(&config.devices)?;
        self.config = Some(config);
        self.go(Verb::Create)
    }

    /// Goes through everything that `verb` asks for. If a step fails the VM is stopped.
    pub(super) fn go(&mut self, verb: Verb) -> anyhow::Result<()> {
        let (next, effects) = self.life.next(verb)?;
        self.tell_before(verb);
        for effect in effects {
            if let Err(error) = self.perform(*effect) {
                if self.running.is_none() && self.config.is_some() {
                    self.life = Life::Created;
                }
                return Err(error);
            }
        }
        self.life = next;
        self.tell_after(verb);
        Ok(())
    }

    fn perform(&mut self, effect: Effect) -> anyhow::Result<()> {
        match effect {
            // The description came with the call.
            Effect::Describe => Ok(()),
            Effect::Start => self.start(),
            Effect::Stop => {
                if let Some(running) = self.running.take() {
                    let news = running.stop(&mut self.watch);
                    self.tell(news);
                }
                Ok(())
            }
            Effect::Forget => {
                for device in self.config.iter().flat_map(|config| &config.devices) {
                    handed::give_up(&self.handed, device);
                }
                self.config = None;
                self.host = None;
                self.departed.clear();
                Ok(())
            }
            Effect::Halt => Ok(self.guest()?.pause()?),
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

    fn start(&mut self) -> anyhow::Result<()> {
        let config = self.config.as_ref().ok_or(Failure::NotCreated)?;
        let host = match &mut self.host {
            Some(host) => host,
            none => {
                // Before anything is opened: a refusal changes nothing.
                devices::judge(&config.devices, &self.host_reader)?;
                none.insert(Host::open(HostParams {
                    config,
                    host_reader: Arc::clone(&self.host_reader),
                    handed: Arc::clone(&self.handed),
                    descriptors: self.descriptors,
                    growing: self.growing,
                })?)
            }
        };
        let running = Running::start(host, config, &self.confinement, &mut self.watch)?;
        self.running = Some(running);
        self.warn();
        Ok(())
    }

    /// Warns once of transfers between devices that are not peers, if this guest accepts them.
    fn warn(&mut self) {
        let running = self.running.as_ref().filter(|_| !self.warned);
        if running.is_some_and(|running| running.machine.unshared_transfers_fail_silently()) {
            log::warn!("{UNSHARED_TRANSFERS}");
            self.warned = true;
        }
    }

    fn tell_before(&self, verb: Verb) {
        let event = match verb {
            Verb::Boot => Event::VmBooting,
            Verb::Pause => Event::VmPausing,
            Verb::Resume => Event::VmResuming,
            Verb::Reboot => Event::VmRebooting,
            Verb::Create | Verb::Shutdown | Verb::Delete | Verb::PowerButton => return,
        };
        self.events.publish(&event);
    }

    fn tell_after(&self, verb: Verb) {
        let event = match verb {
            Verb::Boot => Event::VmBooted,
            Verb::Pause => Event::VmPaused,
            Verb::Resume => Event::VmResumed,
            Verb::Reboot => Event::VmRebooted,
            Verb::Shutdown => Event::VmShutdown,
            Verb::Delete => Event::VmDeleted,
            Verb::Create | Verb::PowerButton => return,
        };
        self.events.publish(&event);
    }

    /// How the guest has ended, if it has.
    pub(super) fn ended(&self) -> Option<VmExit> {
        self.running.as_ref().and_then(Running::ended)
    }

    /// Whether there is a guest.
    pub(super) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Lets the machine do what the guest or the time asks for.
    pub(super) fn heed(&mut self) {
        let Some(running) = &mut self.running else {
            return;
        };
        let news = running.machine.devices.heed();
        self.tell(news);
    }

    /// Tells what has become of devices. What was removed is no part of the description any more.
    fn tell(&mut self, news: Vec<Event>) {
        for event in news {
            if let (Event::DeviceRemoved { id, .. }, Some(config)) = (&event, &mut self.config) {
                let handed = &self.handed;
                let departed = &mut self.departed;
                config.devices.retain(|device| {
                    let goes = device.id.as_ref() == Some(id);
                    if goes {
                        handed::give_up(handed, device);
                        departed.extend(paths::function(device));
                    }
                    !goes
                });
            }
            self.events.publish(&event);
        }
    }

    /// When [`heed`](Self::heed) is to be called at the latest.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let running = self.running.as_ref();
        let devices = running.and_then(|running| running.machine.devices.deadline());
        devices.into_iter().chain(self.newcomers.deadline()).min()
    }

    pub(super) fn info(&self) -> Result<VmInfo, Failure> {
        let config = self.config.clone().ok_or(Failure::NotCreated)?;
        Ok(VmInfo {
            state: match self.life {
                Life::Absent => return Err(Failure::NotCreated),
                Life::Created => VmState::Created,
                Life::Running => VmState::Running,
                Life::Paused => VmState::Paused,
            },
            memory_actual_size: config.memory.size_bytes(),
            config,
            device_tree: self
                .running
                .as_ref()
                .map(|running| running.machine.device_tree()),
        })
    }

    pub(super) fn counters(&self) -> Result<hotplug::api::Counters, Failure> {
        Ok(self.guest()?.machine.counters())
    }

    /// Adds a device: to the guest, if there is one, and to the description. That may be pending, but not beyond
    /// `patience`.
    pub(super) fn add_device(
        &mut self,
        device: DeviceConfig,
        patience: Instant,
    ) -> anyhow::Result<Poll<Option<PciDevice>>> {
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
        let rules = Rules {
            host: &self.host_reader,
            departed: &self.departed,
        };
        let added = devices.add(device, &rules, patience);
        if let Ok(Poll::Ready(_)) = added {
            self.config = Some(wanted);
            self.warn();
        }
        self.heed();
        let in_guest = |bdf: Sbdf| {
            let bdf = bdf.to_string();
            Some(PciDevice { id, bdf })
        };
        Ok(added?.map(in_guest))
    }

    /// Lets the peers of a device reach it, or no more.
    pub(super) fn set_windows(&mut self, request: &P2pWindows) -> anyhow::Result<()> {
        let running = self.running.as_mut().ok_or(Failure::NotRunning)?;
        let devices = &mut running.machine.devices;
        devices.set_revoked(&request.id, !request.open)?;
        Ok(())
    }

    /// Asks the guest to let go of a device; takes it out of the description at once if there is no guest.
    pub(super) fn remove_device(&mut self, request: &RemoveDevice) -> anyhow::Result<()> {
        let config = self.config.as_mut().ok_or(Failure::NotCreated)?;
        let Some(running) = &mut self.running else {
            let before = config.devices.len();
            let is_it = |device: &DeviceConfig| device.id.as_ref() == Some(&request.id);
            for device in config.devices.iter().filter(|device| is_it(device)) {
                handed::give_up(&self.handed, device);
            }
            config.devices.retain(|device| !is_it(device));
            if config.devices.len() == before {
                return Err(Failure::UnknownDevice(request.id.clone()).into());
            }
            return Ok(());
        };
        let force = request.force;
        let patience = if force { Duration::ZERO } else { UNPLUG_TIME };
        let timeout = request.timeout_ms.map_or(patience, Duration::from_millis);
        let options = RemoveOptions { timeout, force };
        running.machine.devices.remove(&request.id, options)?;
        self.heed();
        Ok(())
    }
}
