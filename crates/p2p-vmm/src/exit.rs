//! Why a VM ends, and how whoever notices tells the main thread.

use std::io;
use std::sync::Mutex;

use vmm_sys_util::eventfd::EventFd;

use crate::lock::lock;

/// Why a VM ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum VmExit {
    /// The guest switched itself off.
    PowerOff,
    /// The guest asked for a reset, or fell over; the text says how.
    Reset(&'static str),
    /// A signal asked the VMM to end.
    Signal(i32),
    /// The VM cannot go on; the text says why.
    Failed(String),
}

/// The one place where the end of a VM is announced; the first announcement counts.
#[derive(Debug)]
pub(crate) struct ExitRequest {
    first: Mutex<Option<VmExit>>,
    event: EventFd,
}

impl ExitRequest {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            first: Mutex::new(None),
            event: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
        })
    }

    /// Asks for the end of the VM.
    pub(crate) fn request(&self, exit: VmExit) {
        lock(&self.first).get_or_insert(exit);
        if let Err(error) = self.event.write(1) {
            log::error!("cannot wake the main thread for the end of the VM: {error}");
        }
    }

    /// What was asked for first, if anything was.
    pub(crate) fn requested(&self) -> Option<VmExit> {
        lock(&self.first).clone()
    }

    /// Makes the event wait for the next request.
    pub(crate) fn clear_event(&self) {
        // Nothing to read is no error.
        let _ = self.event.read();
    }

    /// Readable as soon as the end was asked for.
    pub(crate) fn event(&self) -> &EventFd {
        &self.event
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_request_counts() {
        let exit = ExitRequest::new().unwrap();
        assert_eq!(exit.requested(), None);

        exit.request(VmExit::PowerOff);
        exit.request(VmExit::Signal(15));

        assert_eq!(exit.requested(), Some(VmExit::PowerOff));
        assert_eq!(exit.event().read().unwrap(), 2);
    }
}
