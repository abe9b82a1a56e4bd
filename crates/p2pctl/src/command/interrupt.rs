//! Termination signals while the host is being changed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::{Handle, Signals};

/// While this exists, a signal does not terminate the process: it requests the end of the change and prints a message.
pub(super) struct Interrupt {
    asked: Arc<AtomicBool>,
    signals: Handle,
    thread: Option<JoinHandle<()>>,
}

impl Interrupt {
    pub(super) fn hold_off() -> Result<Self> {
        let mut signals =
            Signals::new([SIGINT, SIGTERM, SIGHUP]).context("cannot wait for signals")?;
        let handle = signals.handle();
        let asked = Arc::new(AtomicBool::new(false));
        let ask = Arc::clone(&asked);
        let thread = thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || {
                for _ in signals.forever() {
                    let before = ask.swap(true, Ordering::AcqRel);
                    eprintln!("p2pctl: {}", words(before));
                }
            })
            .context("cannot wait for signals")?;
        Ok(Self {
            asked,
            signals: handle,
            thread: Some(thread),
        })
    }

    /// Whether a signal has been received.
    pub(super) fn flag(&self) -> &AtomicBool {
        &self.asked
    }
}

fn words(before: bool) -> &'static str {
    if before {
        "the change is still running: a partial change would have to be recovered (p2pctl recover)"
    } else {
        "stopping: the change is undone, or completed if it is nearly complete"
    }
}

impl Drop for Interrupt {
    fn drop(&mut self) {
        self.signals.close();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            eprintln!("p2pctl: the thread that waits for signals has panicked");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use signal_hook::low_level::raise;

    use super::*;

    #[test]
    fn a_signal_asks_and_does_not_end_the_process() {
        const DEADLINE: Duration = Duration::from_secs(60);
        let interrupt = Interrupt::hold_off().unwrap();
        assert!(!interrupt.flag().load(Ordering::Acquire));
        for signal in [SIGTERM, SIGINT, SIGINT] {
            raise(signal).unwrap();
        }
        let started = Instant::now();
        while !interrupt.flag().load(Ordering::Acquire) {
            assert!(started.elapsed() < DEADLINE);
            thread::yield_now();
        }
    }
}
