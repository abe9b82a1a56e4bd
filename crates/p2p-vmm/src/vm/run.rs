//! The main thread: starts the requested VM, and serves the guest, API clients and signals until the end.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, anyhow};
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use p2p_vfio::PreopenedDevices;
use vmm_api::{ApiServer, CallQueue, Event, EventLog, EventMonitor};

use super::controller::VmController;
use super::event_loop::EventLoop;
use super::host::VmContext;
use super::running::ExitWatcher;
use super::state::VmCommand;
use crate::cli::Request;
use crate::descriptors::Descriptors;
use crate::error::VmmError;
use crate::exit::{ExitRequest, VmExit};
use crate::host_reader::HostReader;
use crate::logger::Logger;
use crate::sandbox::Role;
use crate::signals::EndSignals;

/// What a process has one of.
pub(crate) struct Process {
    pub(crate) log: Logger,
    pub(crate) descriptors: Descriptors,
    pub(crate) host: Arc<HostReader>,
    pub(crate) signals: EndSignals,
}

/// Runs until the guest powers off, or a client or a signal ends the VMM. `preopened` has the devices of the first
/// VM.
pub(crate) fn run(
    request: Request,
    preopened: PreopenedDevices,
    process: Process,
) -> Result<(), VmmError> {
    let events = EventLog::new();
    let monitor = request.event_monitor.as_ref();
    let enter = |role| {
        let sandbox = Arc::clone(&request.sandbox);
        move || sandbox.enter_io(role)
    };
    // Dropped last, so that the last lines are written.
    let log = process.log.in_background(enter(Role::Log));
    let _log = log.context("cannot start the thread that writes the log")?;
    let monitor = monitor
        .map(|target| EventMonitor::start(&events, target, enter(Role::Events)))
        .transpose()
        .map_err(VmmError::failed)?;
    events.publish(&Event::VmmStarting);

    let mut event_loop = EventLoop::new()?;
    let exit = Arc::new(ExitRequest::new().context("cannot create an eventfd")?);
    event_loop.add(ExitWatcher(Arc::clone(&exit)));
    event_loop.add(process.signals.watcher(Arc::clone(&exit)));
    let socket = request.api_socket.as_deref();
    let api = socket
        .map(|path| ApiServer::start(path, &events, enter(Role::Api)))
        .transpose()
        .map_err(VmmError::failed)?;
    let (server, calls) = api.unzip();
    let calls = calls.map(Arc::new);
    if let Some(calls) = &calls {
        event_loop.add(CallWatcher {
            calls: Arc::clone(calls),
            exit: Arc::clone(&exit),
        });
    }

    // Threads that were started before have filters of their own; vCPUs will inherit this one.
    let entered = request.sandbox.enter(Role::Main);
    entered.map_err(VmmError::failed)?;
    let context = VmContext {
        host_reader: process.host,
        preopened: Arc::new(preopened),
        sandbox: request.sandbox,
        descriptors: process.descriptors,
        hotpluggable: request.api_socket.is_some(),
    };
    let mut controller = VmController::new(event_loop, events.clone(), context);
    let ended = match request.vm {
        Some(config) => controller
            .create(config)
            .and_then(|()| controller.execute(VmCommand::Boot)),
        None => Ok(()),
    }
    .and_then(|()| serve(&mut controller, calls.as_deref(), &exit));
    let stopped = match controller.is_running() {
        true => controller.execute(VmCommand::Shutdown),
        false => Ok(()),
    };
    events.publish(&Event::VmmShutdown);
    // From here on clients get the response that the VMM ends.
    drop(controller);
    drop(calls);
    drop(server);
    drop(monitor);
    ended.and(stopped)
}

/// The main loop.
fn serve(
    controller: &mut VmController,
    calls: Option<&CallQueue>,
    exit: &ExitRequest,
) -> Result<(), VmmError> {
    loop {
        if let Some(ended) = exit.requested().or_else(|| controller.ended()) {
            match ended {
                VmExit::PowerOff => {
                    log::info!("the guest powered off");
                    return Ok(());
                }
                VmExit::Signal(signal) => {
                    log::info!("ended by signal {signal}");
                    return Ok(());
                }
                VmExit::Reset(how) => {
                    log::warn!("{how}: restarting the VM");
                    controller.execute(VmCommand::Reboot)?;
                    continue;
                }
                VmExit::Failed(why) => {
                    return Err(VmmError::failed(anyhow!("the VM failed: {why}")));
                }
            }
        }
        controller.process_events();
        controller.retry_pending_adds();
        if let Some(call) = calls.and_then(CallQueue::next) {
            match controller.answer(call) {
                ControlFlow::Continue(()) => continue,
                ControlFlow::Break(()) => return Ok(()),
            }
        }
        controller
            .event_loop
            .wait(milliseconds_until(controller.deadline()))?;
    }
}

/// Timeout for the event loop: not before `deadline`; -1 without one.
fn milliseconds_until(deadline: Option<Instant>) -> i32 {
    let Some(deadline) = deadline else {
        return -1;
    };
    let left = deadline.saturating_duration_since(Instant::now());
    let milliseconds = left.as_nanos().div_ceil(1_000_000);
    i32::try_from(milliseconds).unwrap_or(i32::MAX)
}

/// Wakes the main loop when a client calls.
struct CallWatcher {
    calls: Arc<CallQueue>,
    exit: Arc<ExitRequest>,
}

impl MutEventSubscriber for CallWatcher {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Err(error) = ops.add(Events::new(self.calls.event(), EventSet::IN)) {
            let text = format!("cannot wait for clients: {error}");
            self.exit.request(VmExit::Failed(text));
        }
    }

    fn process(&mut self, _events: Events, _ops: &mut EventOps<'_>) {
        // Before the calls are taken, so that none is missed. An event without a count is no error.
        let _ = self.calls.event().read();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_loop_does_not_wake_before_its_deadline() {
        assert_eq!(milliseconds_until(None), -1);
        assert_eq!(milliseconds_until(Some(Instant::now())), 0);
        let soon = Instant::now() + Duration::from_millis(500);
        assert!((400..=500).contains(&milliseconds_until(Some(soon))));
        let never = Instant::now() + Duration::from_secs(1 << 40);
        assert_eq!(milliseconds_until(Some(never)), i32::MAX);
    }
}
