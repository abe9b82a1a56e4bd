//! The seam to the kernel: files of sysfs and procfs.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use iommu_group::{Sbdf, Sysfs, SysfsError};

/// A host: two directories to read, and a way to write to the files in the first.
///
/// Reading goes straight to the files. Only writes pass through here, because on a real host they do more than change
/// a file: a fake is a directory whose [`write`](Host::write) does what the kernel would.
pub trait Host {
    /// What stands for `/sys`.
    fn sysfs(&self) -> &Sysfs;

    /// What stands for `/proc`.
    fn proc(&self) -> &Path;

    /// Writes `bytes` at once to a file that must exist, `offset` bytes from its start.
    fn write(&self, path: &Path, offset: u64, bytes: &[u8]) -> io::Result<()>;
}

/// The running system.
#[derive(Debug, Clone)]
pub struct LinuxHost {
    sysfs: Sysfs,
    proc: PathBuf,
}

impl LinuxHost {
    /// A system whose sysfs and procfs are mounted at these directories.
    pub fn new(sysfs: Sysfs, proc: impl Into<PathBuf>) -> Self {
        Self {
            sysfs,
            proc: proc.into(),
        }
    }
}

impl Default for LinuxHost {
    fn default() -> Self {
        Self::new(Sysfs::default(), "/proc")
    }
}

impl Host for LinuxHost {
    fn sysfs(&self) -> &Sysfs {
        &self.sysfs
    }

    fn proc(&self) -> &Path {
        &self.proc
    }

    fn write(&self, path: &Path, offset: u64, bytes: &[u8]) -> io::Result<()> {
        // One call: an attribute takes what a single write brings for the whole value.
        let written = OpenOptions::new()
            .write(true)
            .open(path)?
            .write_at(bytes, offset)?;
        if written < bytes.len() {
            return Err(io::ErrorKind::WriteZero.into());
        }
        Ok(())
    }
}

/// A host that could not be read, or would not do what was written to it.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// A file could not be read or written.
    #[error("cannot {verb} {}: {source}", path.display())]
    Io {
        /// What was attempted.
        verb: &'static str,
        /// On what.
        path: PathBuf,
        /// The errno.
        source: io::Error,
    },
    /// The topology could not be read.
    #[error(transparent)]
    Sysfs(#[from] SysfsError),
    /// A function is not there any more.
    #[error("{function} is not there any more")]
    Gone {
        /// The function.
        function: Sbdf,
    },
    /// Another device is where a function was.
    #[error("another device is where {function} was")]
    Replaced {
        /// The function.
        function: Sbdf,
    },
    /// The journal does not say what a function was, so nothing is done to it.
    #[error("{function} is not on record")]
    Unrecorded {
        /// The function.
        function: Sbdf,
    },
    /// A function is below one that is to be removed, and would be removed with it.
    #[error("{function} is below {above} and is not on record")]
    Stranger {
        /// The function.
        function: Sbdf,
        /// What was to be removed.
        above: Sbdf,
    },
    /// A driver did not take a function.
    #[error("{wanted} did not take {function}: its driver is {}", found.as_deref().unwrap_or("none"))]
    NotBound {
        /// The function.
        function: Sbdf,
        /// The driver that should have.
        wanted: String,
        /// The driver that it has.
        found: Option<String>,
    },
    /// A function is in use by a process, and removing or unbinding it would wait for that for ever.
    #[error("{function} is in use by {user}")]
    InUse {
        /// The function.
        function: Sbdf,
        /// Who uses it.
        user: String,
    },
    /// A register does not hold what it was left with, or what was just written to it.
    #[error("{register} of {function} holds {found}, not {expected}")]
    Register {
        /// The function.
        function: Sbdf,
        /// Which register.
        register: &'static str,
        /// What it should hold.
        expected: String,
        /// What it holds.
        found: String,
    },
    /// The kernel's groups are not those that were predicted.
    #[error("the kernel's groups are not as predicted: {what}")]
    Groups {
        /// The functions and their groups.
        what: String,
    },
    /// A machine gave back something that cannot be what it is said to be.
    #[error("{}: `{text}`: want {want}", path.display())]
    Odd {
        /// The file.
        path: PathBuf,
        /// What it holds.
        text: String,
        /// What it should hold.
        want: &'static str,
    },
}

impl HostError {
    /// For `map_err`: `verb` on `path` failed.
    pub(super) fn io(verb: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { verb, path, source }
    }
}
