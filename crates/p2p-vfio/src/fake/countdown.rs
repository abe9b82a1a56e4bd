//! Injected failure of the n-th call.

use std::io;
use std::sync::{Arc, Mutex};

/// Fails the call at which the count reaches 0, once; disabled by default. Clones share one count.
#[derive(Clone, Debug, Default)]
pub(crate) struct Countdown(Arc<Mutex<Option<u32>>>);

impl Countdown {
    /// Lets `calls` calls succeed and the next one fail.
    pub(crate) fn set(&self, calls: u32) {
        *self.0.lock().unwrap() = Some(calls);
    }

    /// Disables the failure. Returns whether it was still pending.
    pub(crate) fn stop(&self) -> bool {
        self.0.lock().unwrap().take().is_some()
    }

    /// Counts one call.
    pub(crate) fn tick(&self) -> io::Result<()> {
        let mut left = self.0.lock().unwrap();
        match &mut *left {
            Some(0) => {
                *left = None;
                Err(io::Error::from_raw_os_error(libc::EIO))
            }
            Some(n) => {
                *n -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}
