//! Life of one assigned device, from the wish to have it until the host has it back.
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
//! In `Plugged`, `UnplugRequested` and `Overdue` the guest has the device and uses it. In `Releasing` the guest finds
//! nothing any more while the host closes what it had open; only then is a device reported as removed.
//!
//! [`State::next`] decides and does nothing: one thread owns the state and carries out the effects, in their order.

#[cfg(test)]
mod tests;

use thiserror::Error;

pub use vmm_api::Departure;

/// Where a device is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// The VM does not have it.
    Absent,
    /// It is being opened; the guest knows nothing of it.
    Attaching,
    /// The guest has it.
    Plugged,
    /// The guest has it and was asked to let go.
    UnplugRequested,
    /// The guest has it and did not let go in time.
    Overdue,
    /// The guest has it no more, and this is how it left; it is being closed.
    Releasing(Departure),
    /// The host has it back.
    Released,
}

/// What happens to a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// Somebody wants it in the VM.
    Attach,
    /// It is open, and in its slot.
    Attached,
    /// It could not be opened or placed.
    Failed,
    /// Somebody wants it out of the VM, with the guest's consent.
    Request,
    /// The guest's time to let go is over.
    Deadline,
    /// The wish to have it out is taken back.
    Cancel,
    /// The guest has let go of it.
    Ejected,
    /// Somebody wants it out of the VM at once.
    Force,
    /// It is closed: no descriptor, no window, no mapping is left.
    Closed,
}

/// What is to be done after an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Open the device and put it into a slot.
    Open,
    /// Tell the guest that something is in the slot.
    Announce,
    /// Ask the guest to let go, and start its time anew.
    Ask,
    /// Take the question back, if the guest has not seen it.
    Withdraw,
    /// Close its windows, those to the peers first, and take it from the guest, who learns of it after.
    Vanish,
    /// Close the device.
    Close,
    /// Tell whoever watches.
    Tell(Notice),
}

/// What those who watch are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Notice {
    /// The guest was given the device.
    Added,
    /// The device could not be given to the guest; nothing is left of the attempt.
    AddFailed,
    /// The guest was asked to let go.
    UnplugRequested,
    /// The guest did not let go in time. It still has the device.
    UnplugTimeout,
    /// The host has the device back.
    Removed(Departure),
}

/// Why an event is not possible now; the state is as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
pub enum Refused {
    /// There is no such device.
    #[error("the VM does not have it")]
    NotThere,
    /// There is one already.
    #[error("the VM has it already")]
    AlreadyThere,
    /// It is still on its way into the VM.
    #[error("it is still being attached")]
    Attaching,
    /// Nobody has asked for its removal.
    #[error("its removal was not asked for")]
    NotLeaving,
    /// The guest has let go of it already.
    #[error("the guest has let go of it; it is being closed")]
    Releasing,
    /// What happened belongs to a step that is over, or has not begun.
    #[error("this belongs to another step of its life")]
    OutOfTurn,
}

impl State {
    /// What comes after `event`, and what is to be done.
    ///
    /// # Errors
    /// [`Refused`] if that cannot happen in this state.
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
            vec![Effect::Announce, Effect::Tell(Notice::Added)],
        )),
        Event::Failed => Ok((State::Absent, vec![Effect::Tell(Notice::AddFailed)])),
        Event::Attach => Err(Refused::AlreadyThere),
        Event::Request | Event::Cancel | Event::Force => Err(Refused::Attaching),
        Event::Deadline | Event::Ejected | Event::Closed => Err(Refused::OutOfTurn),
    }
}

fn plugged(event: Event) -> Next {
    match event {
        Event::Request => Ok((
            State::UnplugRequested,
            vec![Effect::Ask, Effect::Tell(Notice::UnplugRequested)],
        )),
        Event::Ejected => Ok((State::Releasing(Departure::Unasked), vec![Effect::Close])),
        Event::Force => Ok(forced()),
        Event::Attach => Err(Refused::AlreadyThere),
        Event::Cancel => Err(Refused::NotLeaving),
        Event::Attached | Event::Failed | Event::Deadline | Event::Closed => {
            Err(Refused::OutOfTurn)
        }
    }
}

/// Asked to leave, in time or not.
fn leaving(event: Event, in_time: bool) -> Next {
    match event {
        Event::Request => Ok((
            State::UnplugRequested,
            vec![Effect::Ask, Effect::Tell(Notice::UnplugRequested)],
        )),
        Event::Deadline if in_time => {
            Ok((State::Overdue, vec![Effect::Tell(Notice::UnplugTimeout)]))
        }
        Event::Cancel => Ok((State::Plugged, vec![Effect::Withdraw])),
        Event::Ejected => Ok((State::Releasing(Departure::Asked), vec![Effect::Close])),
        Event::Force => Ok(forced()),
        Event::Attach => Err(Refused::AlreadyThere),
        Event::Deadline | Event::Attached | Event::Failed | Event::Closed => {
            Err(Refused::OutOfTurn)
        }
    }
}

fn forced() -> (State, Vec<Effect>) {
    let effects = vec![Effect::Vanish, Effect::Close];
    (State::Releasing(Departure::Forced), effects)
}

fn releasing(event: Event, departure: Departure) -> Next {
    match event {
        Event::Closed => Ok((
            State::Released,
            vec![Effect::Tell(Notice::Removed(departure))],
        )),
        Event::Attach | Event::Request | Event::Cancel | Event::Force => Err(Refused::Releasing),
        Event::Attached | Event::Failed | Event::Deadline | Event::Ejected => {
            Err(Refused::OutOfTurn)
        }
    }
}
