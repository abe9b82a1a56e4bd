//! How many of the process's descriptors a guest can take.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// A bound on the numbers of descriptors for what a guest decides on, such as interrupt vectors.
///
/// The kernel gives the lowest number that is free (POSIX.1-2024 §2.6). What keeps below a bound therefore leaves the
/// numbers above it to everybody else: clients, unplugs and revocation find descriptors whatever the guest does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DescriptorLimit {
    /// The first number that is not given.
    end: RawFd,
}

impl DescriptorLimit {
    /// No bound but that of the process.
    pub const NONE: Self = Self { end: RawFd::MAX };

    /// Leaves the highest `reserved` numbers of a process that may have `limit` descriptors (`RLIMIT_NOFILE`).
    pub fn leaving(reserved: u64, limit: u64) -> Self {
        let end = limit.saturating_sub(reserved);
        Self {
            end: RawFd::try_from(end).unwrap_or(RawFd::MAX),
        }
    }

    /// A new eventfd that does not block.
    ///
    /// # Errors
    /// `EMFILE` if it would be beyond the bound; else the errno of the kernel.
    pub fn eventfd(self) -> io::Result<EventFd> {
        let event = EventFd::new(EFD_NONBLOCK)?;
        if event.as_raw_fd() >= self.end {
            return Err(io::Error::from_raw_os_error(libc::EMFILE));
        }
        Ok(event)
    }
}
