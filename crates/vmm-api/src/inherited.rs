//! Descriptors that a process was started with, by number.

use std::fmt;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::str::FromStr;

/// The number of a descriptor that this process has inherited, above those of its standard streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inherited(RawFd);

impl Inherited {
    /// What a number of one is, after "is not".
    pub(crate) const WHAT: &str = "the number of a descriptor above 2";
    const FIRST: RawFd = 3;

    /// A descriptor of its own for what the inherited one is open on.
    ///
    /// # Errors
    /// `ENOENT` if it is not open.
    pub fn duplicate(self) -> io::Result<OwnedFd> {
        // Opening it anew would fail for sockets; procfs says whether it is open at all.
        let link = std::fs::read_link(format!("/proc/self/fd/{}", self.0))?;
        log::debug!("descriptor {} is {}", self.0, link.display());
        edge::duplicate(self.0)
    }
}

impl FromStr for Inherited {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = text.parse().ok().filter(|number| *number >= Self::FIRST);
        number.map(Self).ok_or_else(|| Self::WHAT.to_owned())
    }
}

impl fmt::Display for Inherited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

mod edge {
    #![allow(unsafe_code, reason = "an inherited descriptor is a number")]

    use std::io;
    use std::os::fd::{BorrowedFd, OwnedFd, RawFd};

    pub(super) fn duplicate(number: RawFd) -> io::Result<OwnedFd> {
        // SAFETY: the caller saw that the descriptor is open; it was inherited, so nobody in this process closes it.
        let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
        borrowed.try_clone_to_owned()
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn standard_streams_and_words_are_none() {
        for text in ["2", "-1", "x", "", "4294967296"] {
            assert!(text.parse::<Inherited>().is_err(), "{text:?}");
        }
        assert_eq!("3".parse(), Ok(Inherited(3)));
    }

    #[test]
    fn what_is_open_is_duplicated_and_what_is_not_is_said() {
        let file = tempfile::tempfile().unwrap();
        let copy = Inherited(file.as_raw_fd()).duplicate().unwrap();
        assert_ne!(copy.as_raw_fd(), file.as_raw_fd());
        let error = Inherited(987_654).duplicate().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
