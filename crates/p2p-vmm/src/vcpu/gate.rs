//! Where vCPU threads wait while the VM is paused.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What a vCPU does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pass {
    /// Run the guest.
    Run,
    /// Run the guest, which was paused.
    Resumed,
    /// End.
    Stop,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Run,
    Park,
    Stop,
}

struct State {
    wanted: Wanted,
    /// Threads that wait here.
    parked: usize,
    /// Threads that will not come any more.
    gone: usize,
}

/// A gate that every vCPU thread passes between two exits of the guest.
pub(super) struct Gate {
    /// Whether to look at the state at all.
    closed: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
}

impl Gate {
    /// An open gate.
    pub(super) fn new() -> Self {
        Self {
            closed: AtomicBool::new(false),
            state: Mutex::new(State {
                wanted: Wanted::Run,
                parked: 0,
                gone: 0,
            }),
            changed: Condvar::new(),
        }
    }

    /// Passes the gate, or waits before it.
    pub(super) fn pass(&self) -> Pass {
        if !self.closed.load(Ordering::Acquire) {
            return Pass::Run;
        }
        let mut state = self.lock();
        if state.wanted != Wanted::Park {
            return match state.wanted {
                Wanted::Stop => Pass::Stop,
                Wanted::Run | Wanted::Park => Pass::Run,
            };
        }
        state.parked = state.parked.saturating_add(1);
        self.changed.notify_all();
        let mut state = self
            .changed
            .wait_while(state, |state| state.wanted == Wanted::Park)
            .unwrap_or_else(PoisonError::into_inner);
        state.parked = state.parked.saturating_sub(1);
        match state.wanted {
            Wanted::Stop => Pass::Stop,
            Wanted::Run | Wanted::Park => Pass::Resumed,
        }
    }

    /// A thread will not come to the gate again.
    pub(super) fn leave(&self) {
        let mut state = self.lock();
        state.gone = state.gone.saturating_add(1);
        self.changed.notify_all();
    }

    /// Closes the gate; whoever runs the guest must be kicked.
    pub(super) fn close(&self) {
        self.want(Wanted::Park);
    }

    /// Waits until all `threads` are at the gate or gone; whether they are.
    pub(super) fn all_parked(&self, threads: usize, patience: Duration) -> bool {
        let state = self.lock();
        let (state, _) = self
            .changed
            .wait_timeout_while(state, patience, |state| {
                state.parked.saturating_add(state.gone) < threads
            })
            .unwrap_or_else(PoisonError::into_inner);
        state.parked.saturating_add(state.gone) >= threads
    }

    /// Lets all through.
    pub(super) fn open(&self) {
        self.want(Wanted::Run);
    }

    /// Sends all home; whoever runs the guest must be kicked.
    pub(super) fn stop(&self) {
        self.want(Wanted::Stop);
    }

    fn want(&self, wanted: Wanted) {
        let mut state = self.lock();
        state.wanted = wanted;
        self.closed.store(wanted != Wanted::Run, Ordering::Release);
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread::spawn;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    #[test]
    fn an_open_gate_lets_through() {
        assert_eq!(Gate::new().pass(), Pass::Run);
    }

    #[test]
    fn who_comes_to_a_closed_gate_waits_until_it_opens() {
        let gate = Arc::new(Gate::new());
        gate.close();
        let at_gate = Arc::clone(&gate);
        let thread = spawn(move || at_gate.pass());
        assert!(gate.all_parked(1, PATIENCE));
        gate.open();
        assert_eq!(thread.join().unwrap(), Pass::Resumed);
    }

    #[test]
    fn who_waits_can_be_sent_home() {
        let gate = Arc::new(Gate::new());
        gate.close();
        let at_gate = Arc::clone(&gate);
        let thread = spawn(move || at_gate.pass());
        assert!(gate.all_parked(1, PATIENCE));
        gate.stop();
        assert_eq!(thread.join().unwrap(), Pass::Stop);
        assert_eq!(gate.pass(), Pass::Stop);
    }

    #[test]
    fn who_is_gone_is_not_waited_for() {
        let gate = Gate::new();
        gate.close();
        assert!(!gate.all_parked(1, Duration::from_millis(1)));
        gate.leave();
        assert!(gate.all_parked(1, PATIENCE));
    }
}
