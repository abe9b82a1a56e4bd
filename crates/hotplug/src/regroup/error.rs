//! Errors of transactions.

use std::io;
use std::path::{Path, PathBuf};

use super::blocker::Refusal;
use super::host::HostError;

/// Error of a transaction.
#[derive(Debug, thiserror::Error)]
pub enum RegroupError {
    /// The plan was refused. Nothing was changed.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The host could not be read. Nothing was changed.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The journal could not be read or written. It holds the actions so far.
    #[error(transparent)]
    State(#[from] StateError),
}

/// Error of the state directory.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// A file in it could not be read or written.
    #[error("cannot {verb} {}: {source}", path.display())]
    Io {
        /// The attempted operation.
        verb: &'static str,
        /// The path.
        path: PathBuf,
        /// The errno.
        source: io::Error,
    },
    /// Another process has the lock.
    #[error("another process is changing this host: {} is locked", path.display())]
    Busy {
        /// The lock.
        path: PathBuf,
    },
    /// The file has a version that this program cannot read.
    #[error("{}, line 1: version {found}: this program reads version {wanted}", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// The version that this program reads.
        wanted: u32,
    },
    /// The journal is invalid.
    #[error("{}, line {line}: {reason}", path.display())]
    Journal {
        /// The journal.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The error.
        reason: String,
    },
}

impl StateError {
    /// For `map_err`: `verb` failed on `path`.
    pub(super) fn io(verb: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { verb, path, source }
    }
}
