//! Interface to the kernel: files of sysfs and procfs.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use iommu_group::{AcsBits, Sbdf, Sysfs, SysfsError};

/// A host: sysfs, procfs, and a method to write to sysfs.
///
/// Reads go directly to the files. Only writes pass through this trait, because writes to sysfs have side effects. A
/// fake host is a directory whose [`write`](Host::write) simulates them.
pub trait Host {
    /// The sysfs directory.
    fn sysfs(&self) -> &Sysfs;

    /// The procfs directory.
    fn proc(&self) -> &Path;

    /// Writes `bytes` in one call to an existing file, at `offset`.
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
        // One call: an attribute takes the bytes of a single write as the whole value.
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

/// Error of reading or changing a host.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// A file could not be read or written.
    #[error("cannot {verb} {}: {source}", path.display())]
    Io {
        /// The attempted operation.
        verb: &'static str,
        /// The path.
        path: PathBuf,
        /// The errno.
        source: io::Error,
    },
    /// The topology could not be read.
    #[error(transparent)]
    Sysfs(#[from] SysfsError),
    /// A function is gone.
    #[error("{function} is gone")]
    Gone {
        /// The function.
        function: Sbdf,
    },
    /// A different device is in the place of a function.
    #[error("{function} was replaced by another device")]
    Replaced {
        /// The function.
        function: Sbdf,
    },
    /// The journal has no record of the function, so nothing is written to it.
    #[error("{function} is not in the journal")]
    Unrecorded {
        /// The function.
        function: Sbdf,
    },
    /// An unrecorded function is below one that is to be removed, and would be removed with it.
    #[error("{function} is below {above} and is not in the journal")]
    Stranger {
        /// The function.
        function: Sbdf,
        /// The function to remove.
        above: Sbdf,
    },
    /// The driver was not bound to the function.
    #[error("{function} was not bound to {wanted}: its driver is {}", found.as_deref().unwrap_or("none"))]
    NotBound {
        /// The function.
        function: Sbdf,
        /// The expected driver.
        wanted: String,
        /// The current driver.
        found: Option<String>,
    },
    /// A process uses the function. Removing or unbinding it would block until the process ends.
    #[error("{function} is in use by {user}")]
    InUse {
        /// The function.
        function: Sbdf,
        /// The process.
        user: String,
    },
    /// A register has an unexpected value, before or after a write.
    #[error("{register} of {function} holds {found}, not {expected}")]
    Register {
        /// The function.
        function: Sbdf,
        /// Name of the register.
        register: &'static str,
        /// The expected value.
        expected: String,
        /// The actual value.
        found: String,
    },
    /// The kernel's groups differ from the predicted ones.
    #[error("the kernel's groups are not as predicted: {what}")]
    Groups {
        /// The functions and their groups.
        what: String,
    },
    /// A file has unexpected content.
    #[error("{}: `{text}`: expected {want}", path.display())]
    Odd {
        /// The file.
        path: PathBuf,
        /// The content.
        text: String,
        /// The expected content.
        want: &'static str,
    },
}

impl HostError {
    /// An ACS control register has an unexpected value.
    pub(super) fn acs_control(function: Sbdf, expected: AcsBits, found: AcsBits) -> Self {
        Self::Register {
            function,
            register: "ACS control",
            expected: format!("{expected:04x}"),
            found: format!("{found:04x}"),
        }
    }

    /// For `map_err`: `verb` failed on `path`.
    pub(super) fn io(verb: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { verb, path, source }
    }
}
