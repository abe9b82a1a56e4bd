//! The main thread: starts what was asked for, and waits for the guest, clients and signals until the end.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, bail};
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use hotplug::api::{ApiServer, CallQueue};
use hotplug::{Event, EventLog, EventMonitor};
use p2p_vfio::Handed;

use super::answer::After;
use super::life::Verb;
use super::owner::{Owner, OwnerParams};
use super::running::ExitWatcher;
use super::watch::Watch;
use crate::cli::Request;
use crate::confine::Role;
use crate::descriptors::Descriptors;
use crate::exit::{ExitRequest, VmExit};
use crate::host_reader::HostReader;
use crate::logger::Logger;
use crate::signals::EndSignals;

/// What there is one of in a process.
pub(crate) struct Process {
    pub(crate) log: Logger,
    pub(crate) descriptors: Descriptors,
    pub(crate) host: Arc<HostReader>,
    pub(crate) signals: EndSignals,
}

/// Runs until the guest switches itself off, a client or a signal ends it. What was `handed` in is of its first VM.
pub(crate) fn run(request: Request, handed: Handed, process: Process) -> anyhow::Result<()> {
    let events = EventLog::new();
    let monitor = request.event_monitor.as_ref();
    let enter = |role| {
        let confinement = Arc::clone(&request.confinement);
        move || confinement.enter_io(role)
    };
    // Dropped last, so that the last lines are written.
    let log = process.log.in_background(enter(Role::Log));
    let _log = log.context("cannot start the thread that writes the log")?;
    let monitor = monitor
        .map(|target| EventMonitor::start(&events, target, enter(Role::Events)))
        .transpose()?;
    events.publish(&Event::VmmStarting);

    let mut watch = Watch::new()?;
    let exit = Arc::new(ExitRequest::new().context("cannot create an eventfd")?);
    watch.add(ExitWatcher(Arc::clone(&exit)));
    watch.add(process.signals.watcher(Arc::clone(&exit)));
    let socket = request.api_socket.as_deref();
    let api = socket
        .map(|path| ApiServer::start(path, &events, enter(Role::Api)))
        .transpose()?;
    let (server, calls) = api.unzip();
    let calls = calls.map(Arc::new);
    if let Some(calls) = &calls {
        watch.add(CallWatcher {
            calls: Arc::clone(calls),
            exit: Arc::clone(&exit),
        });
    }

    // Threads that were started before have filters of their own; vCPUs will inherit this one.
    request.confinement.enter(Role::Main)?;
    let mut owner = Owner::new(OwnerParams {
        watch,
        events: events.clone(),
        host_reader: process.host,
        handed: Arc::new(handed),
        confinement: request.confinement,
        descriptors: process.descriptors,
        growing: request.api_socket.is_some(),
    });
    let ended = match request.vm {
        Some(config) => owner.create(config).and_then(|()| owner.go(Verb::Boot)),
        None => Ok(()),
    }
    .and_then(|()| serve(&mut owner, calls.as_deref(), &exit));
    let stopped = match owner.is_running() {
        true => owner.go(Verb::Shutdown),
        false => Ok(()),
    };
    events.publish(&Event::VmmShutdown);
    // Whoever asks from now on is told that the VMM ends.
    drop(owner);
    drop(calls);
    drop(server);
    drop(monitor);
    ended.and(stopped)
}

/// Waits and acts until the end.
fn serve(owner: &mut Owner, calls: Option<&CallQueue>, exit: &ExitRequest) -> anyhow::Result<()> {
    loop {
        if let Some(ended) = exit.requested().or_else(|| owner.ended()) {
            match ended {
                VmExit::PowerOff => {
                    log::info!("the guest switched itself off");
                    return Ok(());
                }
                VmExit::Signal(signal) => {
                    log::info!("ended by signal {signal}");
                    return Ok(());
                }
                VmExit::Reset(how) => {
                    log::warn!("{how}: the VM starts again");
                    owner.go(Verb::Reboot)?;
                    continue;
                }
                VmExit::Failed(why) => bail!("the VM cannot go on: {why}"),
            }
        }
        owner.heed();
        owner.receive_waiting();
        if let Some(call) = calls.and_then(CallQueue::next) {
            match owner.answer(call) {
                After::GoOn => continue,
                After::End => return Ok(()),
            }
        }
        owner.watch.wait(milliseconds_until(owner.deadline()))?;
    }
}

/// What the event loop takes as a timeout: not before `deadline`; -1 if there is none.
fn milliseconds_until(deadline: Option<Instant>) -> i32 {
    let Some(deadline) = deadline else {
        return -1;
    };
    let left = deadline.saturating_duration_since(Instant::now());
    let milliseconds = left.as_nanos().div_ceil(1_000_000);
    i32::try_from(milliseconds).unwrap_or(i32::MAX)
}

/// Wakes the loop when clients call; the loop answers.
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
        // Before the calls are taken, so that none is overslept; nothing to read is no error.
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
