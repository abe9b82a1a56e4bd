//! Lifecycle of one assigned device in a VM.
//!
//! ```text
//!            attach             attached                request
//!  Absent ───────────▶ Attaching ───────▶ Plugged ─────────────────▶ UnplugRequested ◀─┐ request
//!     ▲                    │               ▲  │ │ ◀───────────────── │   │   │   └─────┘ (asks again)
//!     └────────────────────┘               │  │ │      cancel        │   │   │ deadline
//!            failed                        │  │ │                    │   │   ▼
//!                                          │  │ │            request │   │  Overdue
//!                                   cancel │  │ │                    └───┼── │ │ │
//!                                          └──┼─┼────────────────────────┼────┘ │ │
//!                          ejected or force   │ │   ejected or force     │      │ │
//!                                             └─┴───────▶ Releasing ◀────┴──────┴─┘
//!                                                             │ closed
//!                                                             ▼
//!                                                          Released
//! ```
//! In `Plugged`, `UnplugRequested` and `Overdue` the guest has the device. In `Releasing` the guest no longer finds it
//! and the VMM closes it; the device is reported as removed when it is closed.
//!
//! [`State::next`] only decides. One thread owns the state and carries out the effects in order.

#[cfg(test)]
mod tests;

use thiserror::Error;

pub use vmm_api::Departure;

/// State of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// The VM does not have it.
    Absent,
    /// The VMM opens it; the guest does not see it.
    Attaching,
    /// The guest has it.
    Plugged,
    /// The guest has it and was asked to release it.
    UnplugRequested,
    /// The guest has it and did not release it in time.
    Overdue,
    /// It left the guest in this way and is being closed.
    Releasing(Departure),
    /// It is closed and free for the host.
    Released,
}

/// An event in the life of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// A client adds it to the VM.
    Attach,
    /// It is open and in its slot.
    Attached,
    /// It could not be opened or placed.
    Failed,
    /// A client requests its removal with the guest's consent.
    Request,
    /// The guest's deadline has passed.
    Deadline,
    /// The removal request is cancelled.
    Cancel,
    /// The guest has released it.
    Ejected,
    /// A client requests its removal without the guest's consent.
    Force,
    /// It is closed: no descriptor and no mapping is left.
    Closed,
}

/// An action that follows from an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Open the device and put it into a slot.
    Open,
    /// Notify the guest of the device in the slot.
    Announce,
    /// Ask the guest to release the device, and restart the deadline.
    RequestUnplug,
    /// Cancel the request, if the guest has not seen it.
    CancelUnplug,
    /// Unmap its BARs, first for the peers, and remove it from the guest, which is notified afterwards.
    RemoveFromGuest,
    /// Close the device.
    Close,
    /// Emit a notice.
    Emit(Notice),
}

/// A notice about a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Notice {
    /// The device was added to the guest.
    Added,
    /// The device could not be added; nothing of it is left.
    AddFailed,
    /// The guest was asked to release the device.
    UnplugRequested,
    /// The guest did not release the device in time. It still has it.
    UnplugTimeout,
    /// The device was removed and closed.
    Removed(Departure),
}

/// The event is not possible in this state. The state is unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
pub enum Refused {
    /// The VM does not have the device.
    #[error("the VM does not have the device")]
    NotThere,
    /// The VM has the device already.
    #[error("the VM has the device already")]
    AlreadyThere,
    /// The device is still being attached.
    #[error("the device is still being attached")]
    Attaching,
    /// Its removal was not requested.
    #[error("the removal of the device was not requested")]
    NotLeaving,
    /// The device is being closed.
    #[error("the guest has released the device; it is being closed")]
    Releasing,
    /// The event belongs to another state.
    #[error("the event does not fit the state of the device")]
    WrongState,
}

impl State {
    /// The next state and the effects of `event`.
    ///
    /// # Errors
    /// [`Refused`] if the event is not possible in this state.
    pub fn next(self, event: Event) -> Result<(Self, Vec<Effect>), Refused> {
        match self {
            Self::Absent => absent(event),
            Self::Attaching => attaching(event),
            Self::Plugged => plugged(event),
            Self::UnplugRequested => leaving(event, true),
            Self::Overdue => leaving(event, false),
            Self::Releasing(departure) => releasing(event, departure),
            Self::Released => Err(Refused::NotThere),
        }
    }
}

type Next = Result<(State, Vec<Effect>), Refused>;

fn absent(event: Event) -> Next {
    match event {
        Event::Attach => Ok((State::Attaching, vec![Effect::Open])),
        Event::Attached
        | Event::Failed
        | Event::Request
        | Event::Deadline
        | Event::Cancel
        | Event::Ejected
        | Event::Force
        | Event::Closed => Err(Refused::NotThere),
    }
}

fn attaching(event: Event) -> Next {
    match event {
        Event::Attached => Ok((
            State::Plugged,
            vec![Effect::Announce, Effect::Emit(Notice::Added)],
        )),
        Event::Failed => Ok((State::Absent, vec![Effect::Emit(Notice::AddFailed)])),
        Event::Attach => Err(Refused::AlreadyThere),
        Event::Request | Event::Cancel | Event::Force => Err(Refused::Attaching),
        Event::Deadline | Event::Ejected | Event::Closed => Err(Refused::WrongState),
    }
}

fn plugged(event: Event) -> Next {
    match event {
        Event::Request => Ok((
            State::UnplugRequested,
            vec![Effect::RequestUnplug, Effect::Emit(Notice::UnplugRequested)],
        )),
        Event::Ejected => Ok((
            State::Releasing(Departure::GuestInitiated),
            vec![Effect::Close],
        )),
        Event::Force => Ok(forced()),
        Event::Attach => Err(Refused::AlreadyThere),
        Event::Cancel => Err(Refused::NotLeaving),
        Event::Attached | Event::Failed | Event::Deadline | Event::Closed => {
            Err(Refused::WrongState)
        }
    }
}

/// Removal was requested; `in_time` is false after the deadline.
fn leaving(event: Event, in_time: bool) -> Next {
    match event {
        Event::Request => Ok((
            State::UnplugRequested,
            vec![Effect::RequestUnplug, Effect::Emit(Notice::UnplugRequested)],
        )),
        Event::Deadline if in_time => {
            Ok((State::Overdue, vec![Effect::Emit(Notice::UnplugTimeout)]))
        }
        Event::Cancel => Ok((State::Plugged, vec![Effect::CancelUnplug])),
        Event::Ejected => Ok((State::Releasing(Departure::Requested), vec![Effect::Close])),
        Event::Force => Ok(forced()),
        Event::Attach => Err(Refused::AlreadyThere),
        Event::Deadline | Event::Attached | Event::Failed | Event::Closed => {
            Err(Refused::WrongState)
        }
    }
}

fn forced() -> (State, Vec<Effect>) {
    let effects = vec![Effect::RemoveFromGuest, Effect::Close];
    (State::Releasing(Departure::Forced), effects)
}

fn releasing(event: Event, departure: Departure) -> Next {
    match event {
        Event::Closed => Ok((
            State::Released,
            vec![Effect::Emit(Notice::Removed(departure))],
        )),
        Event::Attach | Event::Request | Event::Cancel | Event::Force => Err(Refused::Releasing),
        Event::Attached | Event::Failed | Event::Deadline | Event::Ejected => {
            Err(Refused::WrongState)
        }
    }
}
