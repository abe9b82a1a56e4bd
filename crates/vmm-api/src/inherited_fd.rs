//! Descriptors that a process inherited, by number.

use std::fmt;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::str::FromStr;

/// Number of an inherited descriptor, above those of the standard streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InheritedFd(RawFd);

impl InheritedFd {
    /// What the number must be, to complete "is not …".
    pub(crate) const WHAT: &str = "the number of a descriptor above 2";
    const FIRST: RawFd = 3;

    /// Duplicates the descriptor.
    ///
    /// # Errors
    /// `ENOENT` if the descriptor is not open.
    pub fn duplicate(self) -> io::Result<OwnedFd> {
        // Opening this link would fail for sockets, but reading it shows whether the descriptor is open.
        let link = std::fs::read_link(format!("/proc/self/fd/{}", self.0))?;
        log::debug!("descriptor {} is {}", self.0, link.display());
        edge::duplicate(self.0)
    }
}

impl FromStr for InheritedFd {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = text.parse().ok().filter(|number| *number >= Self::FIRST);
        number.map(Self).ok_or_else(|| Self::WHAT.to_owned())
    }
}

impl fmt::Display for InheritedFd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

mod edge {
    #![allow(unsafe_code, reason = "an inherited descriptor is a number")]

    use std::io;
    use std::os::fd::{BorrowedFd, OwnedFd, RawFd};

    pub(super) fn duplicate(number: RawFd) -> io::Result<OwnedFd> {
        // SAFETY: the caller saw that the descriptor is open. It was inherited, so nothing in this process closes it.
        let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
        borrowed.try_clone_to_owned()
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn standard_streams_and_other_texts_are_refused() {
        for text in ["2", "-1", "x", "", "4294967296"] {
            assert!(text.parse::<InheritedFd>().is_err(), "{text:?}");
        }
        assert_eq!("3".parse(), Ok(InheritedFd(3)));
    }

    #[test]
    fn an_open_descriptor_is_duplicated_and_a_closed_one_is_an_error() {
        let file = tempfile::tempfile().unwrap();
        let copy = InheritedFd(file.as_raw_fd()).duplicate().unwrap();
        assert_ne!(copy.as_raw_fd(), file.as_raw_fd());
        let error = InheritedFd(987_654).duplicate().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
