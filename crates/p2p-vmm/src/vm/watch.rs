//! The event loop of the main thread, and who is woken by it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use anyhow::Context;
use event_manager::{EventManager, MutEventSubscriber, SubscriberId, SubscriberOps};
use p2p_vfio::AssignedDevice;

use crate::notices::NoticeWatcher;

/// The event loop. A device is watched from when the guest has it until just before it is given up: what watches it keeps
/// it alive.
pub(super) struct Watch {
    events: EventManager<Box<dyn MutEventSubscriber>>,
    devices: BTreeMap<String, SubscriberId>,
}

impl Watch {
    pub(super) fn new() -> anyhow::Result<Self> {
        Ok(Self {
            events: EventManager::new().context("cannot create an event loop")?,
            devices: BTreeMap::new(),
        })
    }

    /// Wakes `subscriber` from now on.
    pub(super) fn add(&mut self, subscriber: impl MutEventSubscriber + 'static) -> SubscriberId {
        self.events.add_subscriber(Box::new(subscriber))
    }

    /// Forgets what was added.
    pub(super) fn remove(&mut self, id: SubscriberId) {
        if let Err(error) = self.events.remove_subscriber(id) {
            log::error!("the event loop does not know what it shall forget: {error}");
        }
    }

    /// Listens to what the host tells of a device.
    pub(super) fn add_device(&mut self, id: &str, device: &Arc<Mutex<AssignedDevice>>) {
        let subscriber = self.add(NoticeWatcher(Arc::clone(device)));
        if let Some(old) = self.devices.insert(id.to_owned(), subscriber) {
            self.remove(old);
        }
    }

    /// Lets go of a device.
    pub(super) fn remove_device(&mut self, id: &str) {
        if let Some(subscriber) = self.devices.remove(id) {
            self.remove(subscriber);
        }
    }

    /// Waits until something happens, at most `timeout_ms`; -1 is for ever.
    pub(super) fn wait(&mut self, timeout_ms: i32) -> anyhow::Result<()> {
        self.events
            .run_with_timeout(timeout_ms)
            .context("the event loop failed")?;
        Ok(())
    }
}
