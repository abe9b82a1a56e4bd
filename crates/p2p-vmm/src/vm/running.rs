//! A machine with started vCPUs.

use std::sync::Arc;

use anyhow::Context;
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber, SubscriberId};
use p2p_vfio::DevicePlan;
use vmm_api::{Event, VmConfig};
use vmm_sys_util::epoll::Epoll;

use super::event_loop::EventLoop;
use super::host::{Host, VmContext};
use super::machine::Machine;
use crate::error::VmmError;
use crate::exit::{ExitRequest, VmExit};
use crate::memory;
use crate::vcpu::{PauseError, VcpuThreads};

/// A VM from its first instruction to its end. It is ended by [`stop`](Self::stop).
pub(super) struct Running {
    pub(super) machine: Machine,
    threads: VcpuThreads,
    exit: Arc<ExitRequest>,
    subscribers: Vec<SubscriberId>,
}

impl Running {
    /// Builds the VM of `config` and runs it. Before its first instruction the process gives up access to files that
    /// the VM does not need.
    pub(super) fn start(
        host: &Host,
        context: &VmContext,
        config: &VmConfig,
        plan: DevicePlan,
        event_loop: &mut EventLoop,
    ) -> Result<Self, VmmError> {
        let exit = Arc::new(ExitRequest::new().context("cannot create an eventfd")?);
        let mut machine = Machine::build(host, context, config, plan, &exit)?;
        let exposures = std::mem::take(&mut machine.exposures);
        machine.devices.emit_exposures(&exposures);
        memory::return_freed();
        log::info!("at the start: {}", machine.resource_summary());

        let vcpus = std::mem::take(&mut machine.vcpus);
        let restricted = context.sandbox.restrict_files_to(config);
        restricted.map_err(VmmError::failed)?;
        let threads = VcpuThreads::start(vcpus, &machine.bus, &exit, &context.sandbox);
        let threads = threads.map_err(VmmError::failed)?;
        let mut subscribers = vec![event_loop.add(ExitWatcher(Arc::clone(&exit)))];
        if let Some(input) = machine.serial_input.take() {
            subscribers.push(event_loop.add(input));
        }
        subscribers.push(event_loop.add(DeviceWatcher(Arc::clone(machine.devices.wake()))));
        Ok(Self {
            machine,
            threads,
            exit,
            subscribers,
        })
    }

    /// Pauses the vCPUs.
    pub(super) fn pause(&self) -> Result<(), PauseError> {
        self.threads.pause()
    }

    /// Resumes the vCPUs.
    pub(super) fn resume(&self) {
        self.threads.resume();
    }

    /// The requested end of the guest, if there is one.
    pub(super) fn ended(&self) -> Option<VmExit> {
        self.exit.requested()
    }

    /// Ends the VM. Returns the last events of its devices.
    pub(super) fn stop(mut self, event_loop: &mut EventLoop) -> Vec<Event> {
        // In this order: first the vCPUs stop, then the inputs, then the machine is dropped.
        drop(self.threads);
        let events = self.machine.devices.end();
        log::info!("at the end: {}", self.machine.resource_summary());
        for subscriber in self.subscribers {
            event_loop.remove(subscriber);
        }
        drop(self.machine);
        events
    }
}

/// Wakes the main loop when the end of the VM is requested. The loop reads the reason.
pub(super) struct ExitWatcher(pub(super) Arc<ExitRequest>);

impl MutEventSubscriber for ExitWatcher {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Err(error) = ops.add(Events::new(self.0.event(), EventSet::IN)) {
            let text = format!("cannot wait for the end of the VM: {error}");
            self.0.request(VmExit::Failed(text));
        }
    }

    fn process(&mut self, _events: Events, _ops: &mut EventOps<'_>) {
        self.0.clear_event();
    }
}

/// Wakes the main loop for events of devices, which the loop processes.
struct DeviceWatcher(Arc<Epoll>);

impl MutEventSubscriber for DeviceWatcher {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Err(error) = ops.add(Events::new(&*self.0, EventSet::IN)) {
            log::error!("cannot wait for the devices: {error}");
        }
    }

    fn process(&mut self, _events: Events, _ops: &mut EventOps<'_>) {}
}
