//! The host check that closed devices wait for.

use std::time::Instant;

use hotplug::regroup::PeerMappings;

use super::super::assessment::{Verdict, are_peers, assess};
use super::super::entry::{AGAIN, Entry};
use super::super::response::State;
use super::super::snapshot::Snapshot;
use super::Worker;

impl Worker {
    /// Checks the host for the devices that wait for it. Returns whether it was checked.
    pub(super) fn check(&mut self, now: Instant) -> bool {
        let waiting = self.waiting(now);
        let activity = self.env.activity();
        // During a transaction the host is in an intermediate state.
        if waiting.is_empty() || activity.0 {
            return false;
        }
        let host = self.env.scan();
        let Some(host) = host.filter(|_| self.env.activity() == activity) else {
            for id in waiting {
                if let Some(entry) = self.entries.get_mut(&id) {
                    entry.due = now + AGAIN;
                }
            }
            return false;
        };
        for id in &waiting {
            if let Some(entry) = self.entries.get_mut(id).filter(|entry| entry.rebase) {
                rebase(entry, &host);
            }
        }
        let verdicts: Vec<(String, Verdict)> = waiting
            .into_iter()
            .filter_map(|id| Some((id.clone(), self.verdict(&id, &host)?)))
            .collect();
        for (id, verdict) in verdicts {
            self.apply_verdict(&id, &verdict, now);
        }
        true
    }

    /// The devices to check now.
    fn waiting(&self, now: Instant) -> Vec<String> {
        let entries = self.entries.iter();
        let waits = |entry: &Entry| {
            let peers = || self.peers(entry);
            now >= entry.due
                && match entry.state {
                    // Mappings are opened only if nothing is different for any peer.
                    State::Closed => peers().all(|peer| !is_closing(peer)),
                    State::Kept => true,
                    // A VMM decides about a peer by the devices that the VM has.
                    State::Away => entry.in_flight.is_empty() && peers().all(is_settled),
                    _ => false,
                }
        };
        let waiting = entries.filter(|(_, entry)| waits(entry));
        waiting.map(|(id, _)| id.clone()).collect()
    }

    fn peers<'w>(&'w self, entry: &'w Entry) -> impl Iterator<Item = &'w Entry> {
        let all = self.entries.values();
        all.filter(|other| {
            other.device.id != entry.device.id && are_peers(&other.device, &entry.device)
        })
    }

    fn verdict(&self, id: &str, host: &Snapshot) -> Option<Verdict> {
        let entry = self.entries.get(id)?;
        let own = self.verdict_of(entry, host);
        let is_active = |peer: &&Entry| !matches!(peer.state, State::Open | State::Forgotten);
        let mut peers = self.peers(entry).filter(is_active);
        if own == Verdict::Same && peers.any(|peer| self.verdict_of(peer, host) != Verdict::Same) {
            return Some(Verdict::Changed);
        }
        Some(own)
    }

    fn verdict_of(&self, entry: &Entry, host: &Snapshot) -> Verdict {
        let mut own = self.functions.clone();
        own.extend(self.entries.values().map(|entry| entry.device.function));
        let is_accepted = |exposure: &_| self.env.is_accepted(&entry.device, exposure);
        assess(&entry.device, &entry.good, host, &own, &is_accepted)
    }

    fn apply_verdict(&mut self, id: &str, verdict: &Verdict, now: Instant) {
        let Some(entry) = self.entries.get_mut(id) else {
            return;
        };
        if let Verdict::Exposed(exposures) = verdict {
            let all = exposures.iter().map(ToString::to_string);
            entry.why = all.collect::<Vec<_>>().join("; ");
        }
        let was = entry.state;
        // The guest may already be releasing a device whose mappings could not be closed; that cannot be undone.
        let stays = was == State::Kept && entry.closed == Some(PeerMappings::OpenWhilePlugged);
        if !(stays && *verdict == Verdict::Same) {
            entry.step(verdict.event(), now);
        }
        if entry.state == was {
            entry.put_off(now);
        }
        match (was, verdict) {
            (State::Away, Verdict::Exposed(_)) => self.emit_for(id, "device-withheld", &[]),
            (State::Away, Verdict::Lost) => self.emit_for(id, "device-lost", &[]),
            _ => {}
        }
    }
}

/// Makes the current state the reference of a device.
fn rebase(entry: &mut Entry, host: &Snapshot) {
    if let Some(facts) = host.facts(entry.device.function) {
        entry.good = facts;
    }
    entry.rebase = false;
}

fn is_closing(peer: &Entry) -> bool {
    matches!(peer.state, State::Closing { .. })
}

fn is_settled(peer: &Entry) -> bool {
    matches!(
        peer.state,
        State::Open | State::Kept | State::Away | State::Returning { .. } | State::Forgotten
    )
}
