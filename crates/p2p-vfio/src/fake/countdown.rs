//! The call that fails.

use std::io;
use std::sync::{Arc, Mutex};

/// Fails the call on which its count reaches 0, once; by default none. Clones count together.
#[derive(Clone, Debug, Default)]
pub(crate) struct Countdown(Arc<Mutex<Option<u32>>>);

impl Countdown {
    /// The call after `calls` others fails.
    pub(crate) fn set(&self, calls: u32) {
        *self.0.lock().unwrap() = Some(calls);
    }

    /// No call fails; whether one would still have.
    pub(crate) fn stop(&self) -> bool {
        self.0.lock().unwrap().take().is_some()
    }

    /// One call.
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
