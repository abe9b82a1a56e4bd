//! What becomes of one device after drift. Pure: what there is to do follows from the state, and the next state from
//! what came of it.
//!
//! ```text
//!         drift              closed             as before
//! Open ─────────▶ Closing ──────────▶ Closed ────────────▶ Opening ──▶ Open
//!                    ▲                   │ different           │ no answer: it may be open
//!                    └───────────────────┼─────────────────────┘
//!                                        ▼    let go           safe
//!                                     Leaving ───────▶ Away ────────▶ Returning ──▶ Open
//!                                        │              ▲ │ ▲             │
//!                                        │ kept         │ │ └─────────────┘ failed
//!                                        ▼    let go    │ └▶ Forgotten: the function is gone
//!                                      Kept ────────────┘
//! ```
//! No state leads to `Opening` or `Returning` but by a check of the host that was made after the mappings were closed.

/// Where a device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Nothing is wrong with it.
    Open,
    /// Its mappings have to be closed.
    Closing {
        /// A request to open them had no answer, and may be carried out yet: they are closed twice.
        twice: bool,
    },
    /// Its mappings are closed, or stay until it is unplugged; the host has to be checked.
    Closed,
    /// The host was as before: its mappings may be opened.
    Opening,
    /// The host was different: the guest has to let go of it.
    Leaving,
    /// The guest did not let go of it. It stays closed.
    Kept,
    /// The guest has let go of it; the host has to be checked before it comes back.
    Away,
    /// It may come back.
    Returning {
        /// Something it depends on changed since that was found.
        stale: bool,
    },
    /// There is nothing more to do about it.
    Forgotten,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// Something that it depends on changed.
    Drift,
    /// What the state asks for was done.
    Done,
    /// It failed, or had no answer.
    Failed,
    /// A check found the host as it was when the device was open.
    Same,
    /// A check found it different, and nobody exposed who was not.
    Changed,
    /// A check found an exposure that there was not.
    Exposed,
    /// A check did not find the function.
    Lost,
    /// The VM has the device.
    Present,
    /// The VM does not have it.
    Absent,
    /// It is time to ask the guest again.
    Again,
    /// The VM is gone, or somebody else has seen to the device.
    Over,
}

/// What a state asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Nothing,
    /// Close the mappings.
    Revoke,
    /// Look at the host.
    Check,
    /// Open the mappings.
    Reopen,
    /// Have the guest let go.
    Unplug,
    /// Give the device back.
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
            // Somebody else has taken it out.
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
            // Whether they are open now, nobody knows.
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
            // A request to give it back that had no answer was carried out, or somebody else has given it back.
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
