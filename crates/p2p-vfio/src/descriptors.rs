//! Limit of the process's file descriptors that a guest can use up.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Upper bound of descriptor numbers for objects whose number the guest decides, such as interrupt vectors.
///
/// The kernel returns the lowest free number (POSIX.1-2024 §2.6). Descriptors that stay below a bound therefore leave
/// the numbers above it to other uses: clients, unplugs and revocation find descriptors whatever the guest does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DescriptorLimit {
    /// The first number above the limit.
    end: RawFd,
}

impl DescriptorLimit {
    /// No bound except the limit of the process.
    pub const NONE: Self = Self { end: RawFd::MAX };

    /// Reserves the highest `reserved` numbers of a process that may have `limit` descriptors (`RLIMIT_NOFILE`).
    pub fn leaving(reserved: u64, limit: u64) -> Self {
        let end = limit.saturating_sub(reserved);
        Self {
            end: RawFd::try_from(end).unwrap_or(RawFd::MAX),
        }
    }

    /// Creates a non-blocking eventfd.
    ///
    /// # Errors
    /// `EMFILE` if its number would be above the bound; otherwise the errno of the kernel.
    pub fn eventfd(self) -> io::Result<EventFd> {
        let event = EventFd::new(EFD_NONBLOCK)?;
        if event.as_raw_fd() >= self.end {
            return Err(io::Error::from_raw_os_error(libc::EMFILE));
        }
        Ok(event)
    }
}
