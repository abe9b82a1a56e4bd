//! The open connections. Their number is bounded, and idle connections cannot keep new clients out.
//!
//! If there is no room for a new connection, the connection that has been idle for longest is closed. A client that
//! sends its request at once is served, however many connections are open.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::task::AbortHandle;

/// Largest number of open connections.
const MAX_OPEN: usize = 256;

/// The open connections. Clones share them.
#[derive(Clone, Default)]
pub(super) struct Connections(Arc<Mutex<Open>>);

#[derive(Default)]
struct Open {
    next: u64,
    /// Idle connections by the sequence number of their last request, with the handle that closes each.
    idle: BTreeMap<u64, AbortHandle>,
    /// Number of requests that are being answered.
    busy: usize,
}

/// Entry of a connection.
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
    /// An entry for a new connection, or `None` if all connections are busy. If there is no room, closes the connection
    /// that has been idle for longest.
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

    /// Number of requests that are being answered.
    pub(super) fn busy(&self) -> usize {
        self.lock().busy
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    /// Registers the connection's task, so that it can be closed.
    pub(super) fn opened(&self, task: AbortHandle) {
        let mut state = self.state();
        if let State::New = *state {
            *state = self.rest(task);
        }
    }

    /// Marks the connection as busy: a complete request has arrived.
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

/// A request that is being answered. Its connection is not closed to make room until this is dropped.
pub(super) struct Request(Arc<Entry>);

/// A shared handle of the request, for answers that take long.
#[derive(Clone)]
pub(super) struct Held(#[expect(dead_code, reason = "held for its drop")] pub(super) Arc<Request>);

impl Drop for Request {
    fn drop(&mut self) {
        self.0.ends();
    }
}
