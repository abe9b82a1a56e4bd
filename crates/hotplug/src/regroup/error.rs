//! What can go wrong with a transaction.

use std::io;
use std::path::{Path, PathBuf};

use super::blocker::Refusal;
use super::host::HostError;

/// A transaction that was not begun, or could not be brought to an end.
#[derive(Debug, thiserror::Error)]
pub enum RegroupError {
    /// It was refused, and nothing was changed.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The host could not be read, and nothing was changed.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The journal could not be read or written. What was done so far is in it.
    #[error(transparent)]
    State(#[from] StateError),
}

/// A state directory that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// A file in it could not be read or written.
    #[error("cannot {verb} {}: {source}", path.display())]
    Io {
        /// What was attempted.
        verb: &'static str,
        /// On what.
        path: PathBuf,
        /// The errno.
        source: io::Error,
    },
    /// Another process uses it.
    #[error("another process is changing this host: {} is locked", path.display())]
    Busy {
        /// The lock.
        path: PathBuf,
    },
    /// A file is of another version of this program, which can read it.
    #[error("{}, line 1: version {found}: this program reads version {wanted}", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// The version that this program reads.
        wanted: u32,
    },
    /// A journal does not make sense.
    #[error("{}, line {line}: {reason}", path.display())]
    Journal {
        /// The journal.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// Why not.
        reason: String,
    },
}

impl StateError {
    /// For `map_err`: `verb` on `path` failed.
    pub(super) fn io(verb: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { verb, path, source }
    }
}
