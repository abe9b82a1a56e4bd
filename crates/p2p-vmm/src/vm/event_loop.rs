//! The event loop of the main thread, and who is woken by it.

use anyhow::Context;
use event_manager::{EventManager, MutEventSubscriber, SubscriberId, SubscriberOps};

/// The event loop.
pub(super) struct EventLoop {
    events: EventManager<Box<dyn MutEventSubscriber>>,
}

impl EventLoop {
    pub(super) fn new() -> anyhow::Result<Self> {
        Ok(Self {
            events: EventManager::new().context("cannot create an event loop")?,
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

    /// Waits until something happens, at most `timeout_ms`; -1 is for ever.
    pub(super) fn wait(&mut self, timeout_ms: i32) -> anyhow::Result<()> {
        self.events
            .run_with_timeout(timeout_ms)
            .context("the event loop failed")?;
        Ok(())
    }
}
