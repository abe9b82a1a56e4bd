//! Host events about a device: errors, and requests to give the device back.

use std::io;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::pci::{PciBackend, VfioEvent};

/// The eventfds that the kernel signals; a VMM waits for them.
#[derive(Debug, Default)]
pub(super) struct VfioEvents {
    error: Option<EventFd>,
    request: Option<EventFd>,
}

impl VfioEvents {
    /// Sets up an eventfd for each event that the kernel reports for this device.
    pub(super) fn listen(device: &dyn PciBackend) -> io::Result<Self> {
        let listen = |notice| -> io::Result<Option<EventFd>> {
            if !device.has_notice(notice) {
                return Ok(None);
            }
            let event = EventFd::new(EFD_NONBLOCK)?;
            device.set_notice(notice, &event)?;
            Ok(Some(event))
        };
        Ok(Self {
            error: listen(VfioEvent::Error)?,
            request: listen(VfioEvent::Request)?,
        })
    }

    /// The eventfds to wait for.
    pub(super) fn events(&self) -> impl Iterator<Item = &EventFd> {
        self.error.iter().chain(&self.request)
    }

    /// Takes the events since the last call, errors first.
    pub(super) fn take(&self) -> Vec<VfioEvent> {
        let told = |event: &Option<EventFd>| event.as_ref().is_some_and(|e| e.read().is_ok());
        let error = told(&self.error).then_some(VfioEvent::Error);
        let request = told(&self.request).then_some(VfioEvent::Request);
        error.into_iter().chain(request).collect()
    }
}
