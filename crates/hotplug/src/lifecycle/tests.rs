//! Every state with every event.

use super::*;

const STATES: [State; 9] = [
    State::Absent,
    State::Attaching,
    State::Plugged,
    State::UnplugRequested,
    State::Overdue,
    State::Releasing(Departure::Asked),
    State::Releasing(Departure::Unasked),
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

/// The state after each event, in the order of [`EVENTS`]; what is refused is the reason.
fn row(state: State) -> [Result<State, Refused>; 9] {
    use Refused::{AlreadyThere, Attaching, NotLeaving, NotThere, OutOfTurn, Releasing};
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
            Err(OutOfTurn),
            Err(Attaching),
            Err(OutOfTurn),
            Err(Attaching),
            Err(OutOfTurn),
        ],
        State::Plugged => [
            Err(AlreadyThere),
            Err(OutOfTurn),
            Err(OutOfTurn),
            Ok(State::UnplugRequested),
            Err(OutOfTurn),
            Err(NotLeaving),
            Ok(State::Releasing(Departure::Unasked)),
            Ok(State::Releasing(Departure::Forced)),
            Err(OutOfTurn),
        ],
        State::UnplugRequested => [
            Err(AlreadyThere),
            Err(OutOfTurn),
            Err(OutOfTurn),
            Ok(State::UnplugRequested),
            Ok(State::Overdue),
            Ok(State::Plugged),
            Ok(State::Releasing(Departure::Asked)),
            Ok(State::Releasing(Departure::Forced)),
            Err(OutOfTurn),
        ],
        State::Overdue => [
            Err(AlreadyThere),
            Err(OutOfTurn),
            Err(OutOfTurn),
            Ok(State::UnplugRequested),
            Err(OutOfTurn),
            Ok(State::Plugged),
            Ok(State::Releasing(Departure::Asked)),
            Ok(State::Releasing(Departure::Forced)),
            Err(OutOfTurn),
        ],
        State::Releasing(_) => [
            Err(Releasing),
            Err(OutOfTurn),
            Err(OutOfTurn),
            Err(Releasing),
            Err(OutOfTurn),
            Err(Releasing),
            Err(OutOfTurn),
            Err(Releasing),
            Ok(State::Released),
        ],
        State::Released => [Err(NotThere); 9],
    }
}

#[test]
fn every_state_knows_every_event() {
    for state in STATES {
        let next = EVENTS.map(|event| state.next(event).map(|(state, _)| state));
        assert_eq!(next, row(state), "{state:?}");
    }
}

/// What those who watch are told on the way, and what is left to do, over a whole life.
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
fn a_soft_unplug_asks_and_reports_when_all_is_closed() {
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
            Effect::Tell(Notice::Added),
            Effect::Ask,
            Effect::Tell(Notice::UnplugRequested),
            Effect::Close,
            Effect::Tell(Notice::Removed(Departure::Asked)),
        ]
    );
}

#[test]
fn a_late_eject_still_ends_it() {
    let (state, effects) = live(&[
        Event::Attach,
        Event::Attached,
        Event::Request,
        Event::Deadline,
        Event::Ejected,
        Event::Closed,
    ]);
    assert_eq!(state, State::Released);
    assert!(effects.contains(&Effect::Tell(Notice::UnplugTimeout)));
    let removed = Notice::Removed(Departure::Asked);
    assert_eq!(effects.last(), Some(&Effect::Tell(removed)));
}

#[test]
fn who_lets_go_unasked_is_told_to_have_done_so() {
    let (_, effects) = live(&[
        Event::Attach,
        Event::Attached,
        Event::Ejected,
        Event::Closed,
    ]);
    let removed = Notice::Removed(Departure::Unasked);
    assert_eq!(effects.last(), Some(&Effect::Tell(removed)));
}

#[test]
fn force_takes_it_from_the_guest_before_it_is_closed() {
    for state in [State::Plugged, State::UnplugRequested, State::Overdue] {
        let (next, effects) = state.next(Event::Force).unwrap();
        assert_eq!(next, State::Releasing(Departure::Forced));
        assert_eq!(effects, [Effect::Vanish, Effect::Close]);
    }
}

#[test]
fn what_is_removed_was_closed() {
    for state in STATES {
        for event in EVENTS {
            let Ok((_, effects)) = state.next(event) else {
                continue;
            };
            let is_removed = |effect: &Effect| matches!(effect, Effect::Tell(Notice::Removed(_)));
            let removed = effects.iter().any(is_removed);
            assert_eq!(removed, event == Event::Closed, "{state:?} {event:?}");
        }
    }
}

#[test]
fn a_failed_attempt_leaves_nothing_but_the_news() {
    let (state, effects) = live(&[Event::Attach, Event::Failed]);
    assert_eq!(state, State::Absent);
    assert_eq!(effects, [Effect::Open, Effect::Tell(Notice::AddFailed)]);
}
