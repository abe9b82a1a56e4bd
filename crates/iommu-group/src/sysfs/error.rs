//! Errors of reading sysfs.

use std::io;
use std::path::{Path, PathBuf};

use crate::{GroupId, Sbdf};

/// An error while reading sysfs.
#[derive(Debug, thiserror::Error)]
pub enum SysfsError {
    /// The tree has no PCI bus.
    #[error("there is no PCI bus: {} does not exist", dir.display())]
    NoPci {
        /// The missing directory of PCI functions.
        dir: PathBuf,
    },
    /// There is no PCI function with this address.
    #[error("there is no PCI function {sbdf} in {}", dir.display())]
    NoSuchFunction {
        /// The requested address.
        sbdf: Sbdf,
        /// The directory that was searched.
        dir: PathBuf,
    },
    /// The path of a device does not exist.
    #[error("{} does not exist", path.display())]
    NoSuchPath {
        /// The path as given.
        path: PathBuf,
    },
    /// The path of a device exists but is not a PCI function of this sysfs tree.
    #[error("{} is {}, which is not a PCI function in {}", path.display(), target.display(), dir.display())]
    NotPci {
        /// The path as given.
        path: PathBuf,
        /// The target of the path.
        target: PathBuf,
        /// The directory that lists the PCI functions.
        dir: PathBuf,
    },
    /// The function has no IOMMU group.
    #[error("{sbdf} has no IOMMU group: no IOMMU translates for it, or the IOMMU is off")]
    NoGroup {
        /// The function.
        sbdf: Sbdf,
    },
    /// There is no IOMMU group with this number.
    #[error("there is no IOMMU group {group} in {}", dir.display())]
    NoSuchGroup {
        /// The requested number.
        group: GroupId,
        /// The directory that was searched.
        dir: PathBuf,
    },
    /// A link has an unexpected target.
    #[error("{} points to {}, which is not {want}", link.display(), target.display())]
    OddLink {
        /// The link.
        link: PathBuf,
        /// Its target.
        target: PathBuf,
        /// The expected target.
        want: &'static str,
    },
    /// Another I/O error.
    #[error("cannot {verb} {}: {source}", path.display())]
    Io {
        /// The operation that failed.
        verb: &'static str,
        /// The path that it failed on.
        path: PathBuf,
        /// The errno.
        source: io::Error,
    },
}

impl SysfsError {
    /// Returns a function for `map_err` that reports that `verb` on `path` failed.
    pub(crate) fn io(verb: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { verb, path, source }
    }
}

/// Whether a lookup failed because the object does not exist. Sysfs returns `ENODEV` for a device that was removed
/// between lookup and use.
pub(crate) fn is_missing(error: &io::Error) -> bool {
    // ENXIO = 6 and ENODEV = 19 on every Linux architecture.
    error.kind() == io::ErrorKind::NotFound || matches!(error.raw_os_error(), Some(6 | 19))
}
