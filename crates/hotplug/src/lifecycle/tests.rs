//! Tests of every state with every event.

use super::*;

const STATES: [State; 9] = [
    State::Absent,
    State::Attaching,
    State::Plugged,
    State::UnplugRequested,
    State::Overdue,
    State::Releasing(Departure::Requested),
    State::Releasing(Departure::GuestInitiated),
    State::Releasing(Departure::Forced),
    State::Released,
];

const EVENTS: [Event; 9] = [
    Event::Attach,
    Event::Attached,
    Event::Failed,
    Event::Request,
    Event::Deadline,
    Event::Cancel,
    Event::Ejected,
    Event::Force,
    Event::Closed,
];

/// The result of each event, in the order of [`EVENTS`].
fn row(state: State) -> [Result<State, Refused>; 9] {
    use Refused::{AlreadyThere, Attaching, NotLeaving, NotThere, Releasing, WrongState};
    match state {
        State::Absent => {
            let mut row = [Err(NotThere); 9];
            row[0] = Ok(State::Attaching);
            row
        }
        State::Attaching => [
            Err(AlreadyThere),
            Ok(State::Plugged),
            Ok(State::Absent),
            Err(Attaching),
            Err(WrongState),
            Err(Attaching),
            Err(WrongState),
            Err(Attaching),
            Err(WrongState),
        ],
        State::Plugged => [
            Err(AlreadyThere),
            Err(WrongState),
            Err(WrongState),
            Ok(State::UnplugRequested),
            Err(WrongState),
            Err(NotLeaving),
            Ok(State::Releasing(Departure::GuestInitiated)),
            Ok(State::Releasing(Departure::Forced)),
            Err(WrongState),
        ],
        State::UnplugRequested => [
            Err(AlreadyThere),
            Err(WrongState),
            Err(WrongState),
            Ok(State::UnplugRequested),
            Ok(State::Overdue),
            Ok(State::Plugged),
            Ok(State::Releasing(Departure::Requested)),
            Ok(State::Releasing(Departure::Forced)),
            Err(WrongState),
        ],
        State::Overdue => [
            Err(AlreadyThere),
            Err(WrongState),
            Err(WrongState),
            Ok(State::UnplugRequested),
            Err(WrongState),
            Ok(State::Plugged),
            Ok(State::Releasing(Departure::Requested)),
            Ok(State::Releasing(Departure::Forced)),
            Err(WrongState),
        ],
        State::Releasing(_) => [
            Err(Releasing),
            Err(WrongState),
            Err(WrongState),
            Err(Releasing),
            Err(WrongState),
            Err(Releasing),
            Err(WrongState),
            Err(Releasing),
            Ok(State::Released),
        ],
        State::Released => [Err(NotThere); 9],
    }
}

#[test]
fn every_state_handles_every_event() {
    for state in STATES {
        let next = EVENTS.map(|event| state.next(event).map(|(state, _)| state));
        assert_eq!(next, row(state), "{state:?}");
    }
}

/// The notices and the other effects of a sequence of events.
fn live(events: &[Event]) -> (State, Vec<Effect>) {
    let mut all = Vec::new();
    let mut state = State::Absent;
    for event in events {
        let (next, effects) = state.next(*event).unwrap();
        state = next;
        all.extend(effects);
    }
    (state, all)
}

#[test]
fn an_unplug_is_reported_when_the_device_is_closed() {
    let (state, effects) = live(&[
        Event::Attach,
        Event::Attached,
        Event::Request,
        Event::Ejected,
        Event::Closed,
    ]);
    assert_eq!(state, State::Released);
    assert_eq!(
        effects,
        [
            Effect::Open,
            Effect::Announce,
            Effect::Emit(Notice::Added),
            Effect::RequestUnplug,
            Effect::Emit(Notice::UnplugRequested),
            Effect::Close,
            Effect::Emit(Notice::Removed(Departure::Requested)),
        ]
    );
}

#[test]
fn a_late_eject_still_releases_the_device() {
    let (state, effects) = live(&[
        Event::Attach,
        Event::Attached,
        Event::Request,
        Event::Deadline,
        Event::Ejected,
        Event::Closed,
    ]);
    assert_eq!(state, State::Released);
    assert!(effects.contains(&Effect::Emit(Notice::UnplugTimeout)));
    let removed = Notice::Removed(Departure::Requested);
    assert_eq!(effects.last(), Some(&Effect::Emit(removed)));
}

#[test]
fn an_unrequested_eject_is_reported_as_such() {
    let (_, effects) = live(&[
        Event::Attach,
        Event::Attached,
        Event::Ejected,
        Event::Closed,
    ]);
    let removed = Notice::Removed(Departure::GuestInitiated);
    assert_eq!(effects.last(), Some(&Effect::Emit(removed)));
}

#[test]
fn force_removes_the_device_from_the_guest_before_it_is_closed() {
    for state in [State::Plugged, State::UnplugRequested, State::Overdue] {
        let (next, effects) = state.next(Event::Force).unwrap();
        assert_eq!(next, State::Releasing(Departure::Forced));
        assert_eq!(effects, [Effect::RemoveFromGuest, Effect::Close]);
    }
}

#[test]
fn only_closed_devices_are_reported_as_removed() {
    for state in STATES {
        for event in EVENTS {
            let Ok((_, effects)) = state.next(event) else {
                continue;
            };
            let is_removed = |effect: &Effect| matches!(effect, Effect::Emit(Notice::Removed(_)));
            let removed = effects.iter().any(is_removed);
            assert_eq!(removed, event == Event::Closed, "{state:?} {event:?}");
        }
    }
}

#[test]
fn a_failed_attach_leaves_only_a_notice() {
    let (state, effects) = live(&[Event::Attach, Event::Failed]);
    assert_eq!(state, State::Absent);
    assert_eq!(effects, [Effect::Open, Effect::Emit(Notice::AddFailed)]);
}
