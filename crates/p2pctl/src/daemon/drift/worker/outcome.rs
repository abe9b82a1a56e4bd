//! Results of requests, and their events.

use std::fmt::Display;
use std::time::Instant;

use hotplug::regroup::{PeerMappings, VmmError};

use super::super::inbox::Outcome;
use super::super::response::{Action, Event, State};
use super::Worker;

impl Worker {
    /// Handles the end of an action.
    pub(super) fn ended(
        &mut self,
        id: &str,
        action: Action,
        result: Result<Outcome, VmmError>,
        now: Instant,
    ) {
        let Some(entry) = self.entries.get_mut(id) else {
            return;
        };
        entry.in_flight.retain(|other| *other != action);
        // The state has changed and requires another action.
        if entry.state.action() != action {
            return;
        }
        match result {
            Ok(outcome) => {
                if let Outcome::Closed(windows) = outcome {
                    entry.closed = Some(windows);
                }
                entry.step(Event::Done, now);
                self.emit_done(id, outcome);
            }
            Err(error) => {
                if let VmmError::Gone { .. } = error {
                    self.ask_at = now;
                }
                entry.step(Event::Failed, now);
                let event = match action {
                    Action::Unplug if entry.device.p2p => "device-kept-closed",
                    // The device has no mappings.
                    Action::Unplug => "device-kept",
                    _ => "drift-error",
                };
                if entry.state.action() == action {
                    entry.retry(now);
                }
                self.emit_for(id, event, &[("error", &error)]);
            }
        }
    }

    fn emit_done(&mut self, id: &str, outcome: Outcome) {
        let Some(entry) = self.entries.get(id) else {
            return;
        };
        match outcome {
            // The mappings must be closed again, or there are none.
            Outcome::Closed(_) if entry.state != State::Closed || !entry.device.p2p => {}
            Outcome::Closed(PeerMappings::Closed) => self.emit_for(id, "windows-revoked", &[]),
            Outcome::Closed(PeerMappings::OpenWhilePlugged) => {
                self.emit_for(id, "windows-stay", &[])
            }
            Outcome::Reopened if entry.device.p2p => self.emit_for(id, "windows-reopened", &[]),
            Outcome::Reopened | Outcome::LetGo => {}
            Outcome::Plugged(how) => self.emit_for(id, "device-replugged", &[("how", &how)]),
        }
    }

    /// Reports an event of a device, once per state.
    pub(super) fn emit_for(&mut self, id: &str, event: &str, more: &[(&str, &dyn Display)]) {
        let Some(entry) = self.entries.get_mut(id) else {
            return;
        };
        if entry.is_new(event) {
            let of: [(&str, &dyn Display); 3] =
                [("vm", &self.vm), ("id", &id), ("why", &entry.why)];
            let all: Vec<_> = of.into_iter().chain(more.iter().copied()).collect();
            self.emitter.emit(event, &all);
        }
    }
}
