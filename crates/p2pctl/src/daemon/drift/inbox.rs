//! The inbox of a worker. Its size is bounded by the actions that the worker has started, because alarms are merged.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hotplug::regroup::{PeerMappings, VmDevice, VmmError, WithheldDevice};

use super::assessment::Alarm;
use super::response::Action;

/// The result of a call that a worker has started.
#[derive(Debug)]
pub(super) enum Message {
    /// The devices of the VM.
    Devices(Result<Vec<VmDevice>, VmmError>),
    /// An action for a device has ended.
    Ended {
        id: String,
        action: Action,
        result: Result<Outcome, VmmError>,
    },
}

/// The result of an action.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Closed(PeerMappings),
    Reopened,
    LetGo,
    /// How the device was returned.
    Plugged(&'static str),
}

#[derive(Debug, Default)]
pub(super) struct Inbox {
    mail: Mutex<Mail>,
    more: Condvar,
    /// Whether the worker has nothing left to do.
    at_rest: AtomicBool,
}

/// The contents that arrived since the inbox was last read.
#[derive(Debug, Default)]
pub(super) struct Mail {
    pub(super) alarm: Option<Alarm>,
    pub(super) messages: Vec<Message>,
    /// Devices that an earlier daemon took from the VM.
    pub(super) withheld: Vec<WithheldDevice>,
    /// Whether the inbox is closed.
    closed: bool,
}

impl Mail {
    fn is_empty(&self) -> bool {
        self.alarm.is_none() && self.messages.is_empty() && self.withheld.is_empty()
    }
}

impl Inbox {
    /// Delivers an alarm; `false` if the inbox is closed.
    pub(super) fn alarm(&self, alarm: &Alarm) -> bool {
        let mut mail = self.lock();
        if mail.closed {
            return false;
        }
        match &mut mail.alarm {
            Some(earlier) => earlier.merge(alarm.clone()),
            none => *none = Some(alarm.clone()),
        }
        self.more.notify_one();
        true
    }

    /// Delivers a device that is kept from the VM; `false` if the inbox is closed.
    pub(super) fn withheld(&self, device: &WithheldDevice) -> bool {
        let mut mail = self.lock();
        if mail.closed {
            return false;
        }
        mail.withheld.push(device.clone());
        self.more.notify_one();
        true
    }

    pub(super) fn send(&self, message: Message) {
        self.lock().messages.push(message);
        self.more.notify_one();
    }

    /// Takes the contents, or waits for some for at most `patience`.
    pub(super) fn take(&self, patience: Duration) -> Mail {
        let nothing = |mail: &mut Mail| mail.is_empty();
        let waited = self
            .more
            .wait_timeout_while(self.lock(), patience, nothing)
            .unwrap_or_else(PoisonError::into_inner);
        let mut mail = waited.0;
        Mail {
            alarm: mail.alarm.take(),
            messages: std::mem::take(&mut mail.messages),
            withheld: std::mem::take(&mut mail.withheld),
            closed: mail.closed,
        }
    }

    /// Closes the inbox if it is empty.
    pub(super) fn close_if_empty(&self) -> bool {
        let mut mail = self.lock();
        mail.closed = mail.is_empty();
        mail.closed
    }

    pub(super) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    pub(super) fn set_at_rest(&self, at_rest: bool) {
        self.at_rest.store(at_rest, Ordering::Release);
    }

    /// Whether the worker has nothing left to do.
    pub(super) fn is_at_rest(&self) -> bool {
        let mail = self.lock();
        mail.closed || (mail.is_empty() && self.at_rest.load(Ordering::Acquire))
    }

    fn lock(&self) -> MutexGuard<'_, Mail> {
        self.mail.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
