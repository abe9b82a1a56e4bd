//! The event loop of the main thread.

use anyhow::Context;
use event_manager::{EventManager, MutEventSubscriber, SubscriberId, SubscriberOps};

/// The event loop and its subscribers.
pub(super) struct EventLoop {
    events: EventManager<Box<dyn MutEventSubscriber>>,
}

impl EventLoop {
    pub(super) fn new() -> anyhow::Result<Self> {
        Ok(Self {
            events: EventManager::new().context("cannot create an event loop")?,
        })
    }

    /// Adds a subscriber.
    pub(super) fn add(&mut self, subscriber: impl MutEventSubscriber + 'static) -> SubscriberId {
        self.events.add_subscriber(Box::new(subscriber))
    }

    /// Removes a subscriber.
    pub(super) fn remove(&mut self, id: SubscriberId) {
        if let Err(error) = self.events.remove_subscriber(id) {
            log::error!("cannot remove a subscriber from the event loop: {error}");
        }
    }

    /// Waits for events, at most `timeout_ms` milliseconds; -1 waits without a limit.
    pub(super) fn wait(&mut self, timeout_ms: i32) -> anyhow::Result<()> {
        self.events
            .run_with_timeout(timeout_ms)
            .context("the event loop failed")?;
        Ok(())
    }
}
