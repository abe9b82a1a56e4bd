//! What a worker is told: bounded by what it has begun itself, as alarms are merged.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hotplug::regroup::{PeerMappings, VmDevice, VmmError, WithheldDevice};

use super::assessment::Alarm;
use super::response::Action;

/// What came of something that a worker has begun.
#[derive(Debug)]
pub(super) enum Message {
    /// The devices that the VM has.
    Devices(Result<Vec<VmDevice>, VmmError>),
    /// An action for a device ended.
    Ended {
        id: String,
        action: Action,
        result: Result<Outcome, VmmError>,
    },
}

/// What an action did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Closed(PeerMappings),
    Reopened,
    LetGo,
    /// How the device came back.
    Plugged(&'static str),
}

#[derive(Debug, Default)]
pub(super) struct Inbox {
    mail: Mutex<Mail>,
    more: Condvar,
    /// Whether the worker has nothing to do, as far as it knows.
    at_rest: AtomicBool,
}

/// What has come since somebody looked.
#[derive(Debug, Default)]
pub(super) struct Mail {
    pub(super) alarm: Option<Alarm>,
    pub(super) messages: Vec<Message>,
    /// Devices that a daemon before this one has taken from the VM.
    pub(super) withheld: Vec<WithheldDevice>,
    /// Nobody takes mail any more.
    closed: bool,
}

impl Mail {
    fn is_empty(&self) -> bool {
        self.alarm.is_none() && self.messages.is_empty() && self.withheld.is_empty()
    }
}

impl Inbox {
    /// Leaves an alarm; `false` if nobody will find it.
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

    /// Leaves a device that the VM is without; `false` if nobody will find it.
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

    /// Takes what there is, or what comes within this time.
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

    /// Takes no more mail, unless there is some.
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

    /// Whether there is nothing to do for the worker.
    pub(super) fn is_at_rest(&self) -> bool {
        let mail = self.lock();
        mail.closed || (mail.is_empty() && self.at_rest.load(Ordering::Acquire))
    }

    fn lock(&self) -> MutexGuard<'_, Mail> {
        self.mail.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
