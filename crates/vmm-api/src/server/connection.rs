//! The connections that are open: many, but bounded, and nobody can keep others out by holding them.
//!
//! When there is no room for a new one, the one that has been without a complete request for longest is closed. A client
//! that asks at once is served however many others hold on to theirs.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::task::AbortHandle;

/// Connections that may be open at once.
const MAX_OPEN: usize = 256;

/// The open connections. Clones are the same.
#[derive(Clone, Default)]
pub(super) struct Connections(Arc<Mutex<Open>>);

#[derive(Default)]
struct Open {
    next: u64,
    /// Those without a request, by the number of when they had their last; and how to close each.
    idle: BTreeMap<u64, AbortHandle>,
    /// How many requests are being answered.
    busy: usize,
}

/// A connection's entry.
pub(super) struct Entry {
    connections: Connections,
    state: Mutex<State>,
}

enum State {
    New,
    Idle(u64),
    Busy(AbortHandle),
    Gone,
}

impl Connections {
    /// An entry for a new connection; `None` if all are busy. Closes the one that is idle for longest if there is no room.
    pub(super) fn enter(&self) -> Option<Arc<Entry>> {
        let mut open = self.lock();
        if open.busy.saturating_add(open.idle.len()) >= MAX_OPEN {
            let (_, oldest) = open.idle.pop_first()?;
            oldest.abort();
        }
        drop(open);
        Some(Arc::new(Entry {
            connections: self.clone(),
            state: Mutex::new(State::New),
        }))
    }

    /// How many requests are being answered.
    pub(super) fn busy(&self) -> usize {
        self.lock().busy
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    /// The connection has a task that can be closed.
    pub(super) fn opened(&self, task: AbortHandle) {
        let mut state = self.state();
        if let State::New = *state {
            *state = self.rest(task);
        }
    }

    /// A request is here, to its last byte.
    pub(super) fn begins(self: &Arc<Self>) -> Request {
        let mut state = self.state();
        if let State::Idle(number) = *state {
            let mut open = self.connections.lock();
            if let Some(task) = open.idle.remove(&number) {
                open.busy = open.busy.saturating_add(1);
                *state = State::Busy(task);
            }
        }
        drop(state);
        Request(Arc::clone(self))
    }

    fn ends(&self) {
        let mut state = self.state();
        if let State::Busy(task) = std::mem::replace(&mut *state, State::Gone) {
            let mut open = self.connections.lock();
            open.busy = open.busy.saturating_sub(1);
            drop(open);
            *state = self.rest(task);
        }
    }

    fn rest(&self, task: AbortHandle) -> State {
        let mut open = self.connections.lock();
        let number = open.next;
        open.next = open.next.wrapping_add(1);
        open.idle.insert(number, task);
        State::Idle(number)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let state = std::mem::replace(&mut *self.state(), State::Gone);
        let mut open = self.connections.lock();
        match state {
            State::Idle(number) => {
                open.idle.remove(&number);
            }
            State::Busy(_) => open.busy = open.busy.saturating_sub(1),
            State::New | State::Gone => {}
        }
    }
}

/// A request that is being answered: until this is dropped its connection is not closed for others.
pub(super) struct Request(Arc<Entry>);

/// The request as its handler can hold on to it, for an answer that takes long.
#[derive(Clone)]
pub(super) struct Held(#[expect(dead_code, reason = "held for its drop")] pub(super) Arc<Request>);

impl Drop for Request {
    fn drop(&mut self) {
        self.0.ends();
    }
}
