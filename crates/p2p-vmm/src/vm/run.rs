//! The main thread: builds the VM, waits for its end, and begins again after a reset.

use std::sync::Arc;

use anyhow::{Context, bail};
use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};

use super::host::Host;
use super::machine::Machine;
use crate::config::VmConfig;
use crate::devices;
use crate::exit::{ExitRequest, VmExit};
use crate::notices::NoticeWatcher;
use crate::vcpu::VcpuThreads;

/// Runs the VM until it is switched off or a signal ends it.
pub(crate) fn run(host: &Host, config: &VmConfig) -> anyhow::Result<()> {
    loop {
        match run_once(host, config)? {
            VmExit::PowerOff => {
                log::info!("the guest switched itself off");
                return Ok(());
            }
            VmExit::Signal(signal) => {
                log::info!("ended by signal {signal}");
                return Ok(());
            }
            VmExit::Reset(how) => log::warn!("{how}: the VM starts again"),
            VmExit::Failed(why) => bail!("the VM cannot go on: {why}"),
        }
    }
}

/// One life of the VM, from its first instruction to its end.
fn run_once(host: &Host, config: &VmConfig) -> anyhow::Result<VmExit> {
    let exit = Arc::new(ExitRequest::new().context("cannot create an eventfd")?);
    // Judged again for every life: the host may have changed since the last one.
    let admitted = devices::judge(&config.devices)?;
    let mut machine = Machine::build(host, config, &admitted, &exit)?;
    let mut events = EventManager::<Box<dyn MutEventSubscriber>>::new()
        .context("cannot create an event loop")?;
    events.add_subscriber(Box::new(ExitWatcher(Arc::clone(&exit))));
    events.add_subscriber(Box::new(host.signals.watcher(Arc::clone(&exit))));
    if let Some(input) = machine.serial_input.take() {
        events.add_subscriber(Box::new(input));
    }

    for device in &machine.devices {
        events.add_subscriber(Box::new(NoticeWatcher(Arc::clone(device))));
    }
    log::info!("at the start: {}", machine.census());

    let vcpus = std::mem::take(&mut machine.vcpus);
    let threads = VcpuThreads::start(vcpus, &machine.bus, &exit)?;
    let ended = loop {
        if let Some(ended) = exit.requested() {
            break ended;
        }
        events.run().context("the event loop failed")?;
    };
    // In this order: nobody runs the guest, nobody hands it input, then its parts go.
    drop(threads);
    log::info!("at the end: {}", machine.census());
    drop(events);
    drop(machine);
    Ok(ended)
}

/// Wakes the loop when the end of the VM was asked for; the loop looks why.
struct ExitWatcher(Arc<ExitRequest>);

impl MutEventSubscriber for ExitWatcher {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Err(error) = ops.add(Events::new(self.0.event(), EventSet::IN)) {
            let text = format!("cannot wait for the end of the VM: {error}");
            self.0.request(VmExit::Failed(text));
        }
    }

    fn process(&mut self, _events: Events, _ops: &mut EventOps<'_>) {}
}
