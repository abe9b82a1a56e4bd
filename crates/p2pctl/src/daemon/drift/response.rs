//! State machine of one device after drift. It is pure: the state determines the action, and the event determines the
//! next state.
//!
//! ```text
//!         drift              closed             as before
//! Open ─────────▶ Closing ──────────▶ Closed ────────────▶ Opening ──▶ Open
//!                    ▲                   │ different           │ no answer: it may be open
//!                    └───────────────────┼─────────────────────┘
//!                                        ▼    released         safe
//!                                     Leaving ───────▶ Away ────────▶ Returning ──▶ Open
//!                                        │              ▲ │ ▲             │
//!                                        │ kept         │ │ └─────────────┘ failed
//!                                        ▼    released  │ └▶ Forgotten: the function is gone
//!                                      Kept ────────────┘
//! ```
//! `Opening` and `Returning` are entered only after a check of the host that was made after the mappings were closed.

/// State of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// The device is in normal use.
    Open,
    /// Its mappings have to be closed.
    Closing {
        /// A request to open them was not answered and may still be carried out, so they are closed twice.
        twice: bool,
    },
    /// Its mappings are closed, or stay until the device is unplugged. The host has to be checked.
    Closed,
    /// The host was unchanged: its mappings may be opened.
    Opening,
    /// The host was different: the guest has to release the device.
    Leaving,
    /// The guest did not release the device. The mappings stay closed.
    Kept,
    /// The guest has released the device. The host has to be checked before the device returns.
    Away,
    /// The device may return.
    Returning {
        /// Whether something the device depends on changed since the check.
        stale: bool,
    },
    /// Nothing is left to do.
    Forgotten,
}

/// An event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// Something the device depends on changed.
    Drift,
    /// The state's action succeeded.
    Done,
    /// The state's action failed or timed out.
    Failed,
    /// A check found the host as it was when the device was open.
    Same,
    /// A check found changes without new exposures.
    Changed,
    /// A check found a new exposure.
    Exposed,
    /// A check did not find the function.
    Lost,
    /// The VM has the device.
    Present,
    /// The VM does not have the device.
    Absent,
    /// It is time to ask the guest again.
    Again,
    /// The VM is gone, or another process has handled the device.
    Over,
}

/// The action of a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Nothing,
    /// Close the mappings.
    Revoke,
    /// Check the host.
    Check,
    /// Open the mappings.
    Reopen,
    /// Ask the guest to release the device.
    Unplug,
    /// Return the device to the VM.
    Plug,
}

impl State {
    pub(super) fn action(self) -> Action {
        match self {
            Self::Open | Self::Forgotten => Action::Nothing,
            Self::Closing { .. } => Action::Revoke,
            Self::Closed | Self::Kept | Self::Away => Action::Check,
            Self::Opening => Action::Reopen,
            Self::Leaving => Action::Unplug,
            Self::Returning { .. } => Action::Plug,
        }
    }

    pub(super) fn next(self, event: Event) -> Self {
        use Event::{
            Absent, Again, Changed, Done, Drift, Exposed, Failed, Lost, Over, Present, Same,
        };
        let first = Self::Closing { twice: false };
        match (self, event) {
            (_, Over) | (Self::Forgotten, _) => Self::Forgotten,

            (Self::Open, Drift) => first,
            // Another process has removed it.
            (Self::Open | Self::Closing { .. } | Self::Closed | Self::Opening, Absent) => {
                Self::Forgotten
            }
            (Self::Open, Done | Failed | Same | Changed | Exposed | Lost | Present | Again) => {
                Self::Open
            }

            (Self::Closing { twice: true }, Done) => first,
            (Self::Closing { twice: false }, Done) => Self::Closed,
            (
                Self::Closing { .. },
                Drift | Failed | Same | Changed | Exposed | Lost | Present | Again,
            ) => self,

            (Self::Closed, Same) => Self::Opening,
            (Self::Closed, Changed | Exposed | Lost) => Self::Leaving,
            (Self::Closed, Drift | Done | Failed | Present | Again) => Self::Closed,

            (Self::Opening, Done) => Self::Open,
            // The mappings may be open or closed.
            (Self::Opening, Drift | Failed) => Self::Closing { twice: true },
            (Self::Opening, Same | Changed | Exposed | Lost | Present | Again) => Self::Opening,

            (Self::Leaving, Done | Absent) => Self::Away,
            (Self::Leaving, Failed) => Self::Kept,
            (Self::Leaving, Drift | Same | Changed | Exposed | Lost | Present | Again) => {
                Self::Leaving
            }

            (Self::Kept, Same) => Self::Opening,
            (Self::Kept, Absent) => Self::Away,
            (Self::Kept, Drift | Again) => Self::Leaving,
            (Self::Kept, Done | Failed | Changed | Exposed | Lost | Present) => Self::Kept,

            (Self::Away, Same | Changed) => Self::Returning { stale: false },
            (Self::Away, Lost) => Self::Forgotten,
            // An unanswered request to return the device was carried out, or another process has returned it.
            (Self::Away, Present) => first,
            (Self::Away, Drift | Done | Failed | Exposed | Absent | Again) => Self::Away,

            (Self::Returning { stale: false }, Done) => Self::Open,
            (Self::Returning { stale: true }, Done) => first,
            (Self::Returning { .. }, Failed) => Self::Away,
            (Self::Returning { .. }, Drift) => Self::Returning { stale: true },
            (
                Self::Returning { .. },
                Same | Changed | Exposed | Lost | Present | Absent | Again,
            ) => self,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVENTS: [Event; 11] = [
        Event::Drift,
        Event::Done,
        Event::Failed,
        Event::Same,
        Event::Changed,
        Event::Exposed,
        Event::Lost,
        Event::Present,
        Event::Absent,
        Event::Again,
        Event::Over,
    ];

    const OPEN: State = State::Open;
    const CLOSING: State = State::Closing { twice: false };
    const TWICE: State = State::Closing { twice: true };
    const CLOSED: State = State::Closed;
    const OPENING: State = State::Opening;
    const LEAVING: State = State::Leaving;
    const KEPT: State = State::Kept;
    const AWAY: State = State::Away;
    const RETURNING: State = State::Returning { stale: false };
    const STALE: State = State::Returning { stale: true };
    const OVER: State = State::Forgotten;

    /// From a state, by each of [`EVENTS`].
    #[rustfmt::skip]
    const TABLE: [(State, [State; 11]); 11] = [
        // Drift, Done, Failed, Same, Changed, Exposed, Lost, Present, Absent, Again, Over
        (OPEN, [CLOSING, OPEN, OPEN, OPEN, OPEN, OPEN, OPEN, OPEN, OVER, OPEN, OVER]),
        (CLOSING, [CLOSING, CLOSED, CLOSING, CLOSING, CLOSING, CLOSING, CLOSING, CLOSING, OVER, CLOSING, OVER]),
        (TWICE, [TWICE, CLOSING, TWICE, TWICE, TWICE, TWICE, TWICE, TWICE, OVER, TWICE, OVER]),
        (CLOSED, [CLOSED, CLOSED, CLOSED, OPENING, LEAVING, LEAVING, LEAVING, CLOSED, OVER, CLOSED, OVER]),
        (OPENING, [TWICE, OPEN, TWICE, OPENING, OPENING, OPENING, OPENING, OPENING, OVER, OPENING, OVER]),
        (LEAVING, [LEAVING, AWAY, KEPT, LEAVING, LEAVING, LEAVING, LEAVING, LEAVING, AWAY, LEAVING, OVER]),
        (KEPT, [LEAVING, KEPT, KEPT, OPENING, KEPT, KEPT, KEPT, KEPT, AWAY, LEAVING, OVER]),
        (AWAY, [AWAY, AWAY, AWAY, RETURNING, RETURNING, AWAY, OVER, CLOSING, AWAY, AWAY, OVER]),
        (RETURNING, [STALE, OPEN, AWAY, RETURNING, RETURNING, RETURNING, RETURNING, RETURNING, RETURNING, RETURNING, OVER]),
        (STALE, [STALE, CLOSING, AWAY, STALE, STALE, STALE, STALE, STALE, STALE, STALE, OVER]),
        (OVER, [OVER; 11]),
    ];

    #[test]
    fn every_event_in_every_state() {
        for (state, expected) in TABLE {
            for (event, expected) in EVENTS.into_iter().zip(expected) {
                assert_eq!(state.next(event), expected, "{state:?} {event:?}");
            }
        }
    }

    #[test]
    fn nothing_is_opened_or_given_back_but_by_a_check() {
        for (state, _) in TABLE {
            for event in EVENTS {
                let next = state.next(event);
                let checked = matches!(event, Event::Same | Event::Changed);
                if next.action() == Action::Reopen && state != next {
                    assert_eq!(event, Event::Same, "{state:?}");
                }
                if next.action() == Action::Plug && state.action() != Action::Plug {
                    assert!(checked && state == AWAY, "{state:?} {event:?}");
                }
                if next == OPEN && state != OPEN {
                    assert_eq!(event, Event::Done, "{state:?}");
                    assert!(matches!(state, State::Opening | State::Returning { .. }));
                }
            }
        }
    }

    #[test]
    fn whatever_happens_a_device_can_come_to_rest() {
        let rests = |state: &State| matches!(state, State::Open | State::Forgotten);
        for (state, _) in TABLE {
            let mut reached = vec![state];
            while !reached.iter().any(rests) {
                let next = reached
                    .iter()
                    .flat_map(|state| EVENTS.map(|event| state.next(event)))
                    .find(|next| !reached.contains(next));
                reached.push(next.unwrap());
            }
        }
    }
}
