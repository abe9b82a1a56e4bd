//! Control of vCPU threads: run, pause, stop.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::lock::lock;

/// What a vCPU thread does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RunDecision {
    /// Run the guest.
    Run,
    /// Run the guest, which was paused.
    Resumed,
    /// End.
    Stop,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    Run,
    Park,
    Stop,
}

struct State {
    target: Target,
    /// Threads that are paused.
    parked: usize,
    /// Threads that have ended.
    ended: usize,
}

/// Every vCPU thread checks this between two exits of the guest.
pub(super) struct RunControl {
    /// Whether the target is other than `Run`. If it is not, threads do not take the lock.
    not_running: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
}

impl RunControl {
    /// Threads may run.
    pub(super) fn new() -> Self {
        Self {
            not_running: AtomicBool::new(false),
            state: Mutex::new(State {
                target: Target::Run,
                parked: 0,
                ended: 0,
            }),
            changed: Condvar::new(),
        }
    }

    /// Returns at once, or waits while the VM is paused.
    pub(super) fn wait_until_runnable(&self) -> RunDecision {
        if !self.not_running.load(Ordering::Acquire) {
            return RunDecision::Run;
        }
        let mut state = lock(&self.state);
        let paused = state.target == Target::Park;
        if paused {
            state.parked = state.parked.saturating_add(1);
            self.changed.notify_all();
            state = self
                .changed
                .wait_while(state, |state| state.target == Target::Park)
                .unwrap_or_else(PoisonError::into_inner);
            state.parked = state.parked.saturating_sub(1);
        }
        match state.target {
            Target::Stop => RunDecision::Stop,
            Target::Run | Target::Park if paused => RunDecision::Resumed,
            Target::Run | Target::Park => RunDecision::Run,
        }
    }

    /// Records that a thread has ended.
    pub(super) fn thread_ended(&self) {
        let mut state = lock(&self.state);
        state.ended = state.ended.saturating_add(1);
        self.changed.notify_all();
    }

    /// Requests that threads pause. The caller must kick the vCPUs afterwards.
    pub(super) fn pause(&self) {
        self.set_target(Target::Park);
    }

    /// Waits until all `threads` are paused or have ended. Returns whether they are.
    pub(super) fn wait_until_parked(&self, threads: usize, timeout: Duration) -> bool {
        let state = lock(&self.state);
        let (state, _) = self
            .changed
            .wait_timeout_while(state, timeout, |state| {
                state.parked.saturating_add(state.ended) < threads
            })
            .unwrap_or_else(PoisonError::into_inner);
        state.parked.saturating_add(state.ended) >= threads
    }

    /// Lets all threads run.
    pub(super) fn resume(&self) {
        self.set_target(Target::Run);
    }

    /// Requests that all threads end. The caller must kick the vCPUs afterwards.
    pub(super) fn stop(&self) {
        self.set_target(Target::Stop);
    }

    fn set_target(&self, target: Target) {
        let mut state = lock(&self.state);
        state.target = target;
        self.not_running
            .store(target != Target::Run, Ordering::Release);
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread::spawn;

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(60);

    #[test]
    fn a_running_vm_does_not_wait() {
        assert_eq!(RunControl::new().wait_until_runnable(), RunDecision::Run);
    }

    #[test]
    fn a_paused_thread_waits_until_resume() {
        let control = Arc::new(RunControl::new());
        control.pause();
        let in_thread = Arc::clone(&control);
        let thread = spawn(move || in_thread.wait_until_runnable());
        assert!(control.wait_until_parked(1, TIMEOUT));
        control.resume();
        assert_eq!(thread.join().unwrap(), RunDecision::Resumed);
    }

    #[test]
    fn a_paused_thread_can_be_stopped() {
        let control = Arc::new(RunControl::new());
        control.pause();
        let in_thread = Arc::clone(&control);
        let thread = spawn(move || in_thread.wait_until_runnable());
        assert!(control.wait_until_parked(1, TIMEOUT));
        control.stop();
        assert_eq!(thread.join().unwrap(), RunDecision::Stop);
        assert_eq!(control.wait_until_runnable(), RunDecision::Stop);
    }

    #[test]
    fn an_ended_thread_counts_as_parked() {
        let control = RunControl::new();
        control.pause();
        assert!(!control.wait_until_parked(1, Duration::from_millis(1)));
        control.thread_ended();
        assert!(control.wait_until_parked(1, TIMEOUT));
    }
}
