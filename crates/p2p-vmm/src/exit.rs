//! Why a VM ends, and how the other threads report it to the main thread.

use std::io;
use std::sync::Mutex;

use vmm_sys_util::eventfd::EventFd;

use crate::lock::lock;

/// Why a VM ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum VmExit {
    /// The guest powered off.
    PowerOff,
    /// The guest requested a reset or had a triple fault; the text says which.
    Reset(&'static str),
    /// A signal requested the end of the VMM.
    Signal(i32),
    /// The VM cannot continue; the text says why.
    Failed(String),
}

/// The requested end of a VM; the first request counts.
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

    /// Requests the end of the VM.
    pub(crate) fn request(&self, exit: VmExit) {
        lock(&self.first).get_or_insert(exit);
        if let Err(error) = self.event.write(1) {
            log::error!("cannot wake the main thread for the end of the VM: {error}");
        }
    }

    /// The first request, if there is one.
    pub(crate) fn requested(&self) -> Option<VmExit> {
        lock(&self.first).clone()
    }

    /// Resets the event, so that it waits for the next request.
    pub(crate) fn clear_event(&self) {
        // An event without a count is no error.
        let _ = self.event.read();
    }

    /// Readable once the end was requested.
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
