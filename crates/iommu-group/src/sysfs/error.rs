//! What can go wrong when sysfs is read.

use std::io;
use std::path::{Path, PathBuf};

use crate::{GroupId, Sbdf};

/// A failed read of sysfs.
#[derive(Debug, thiserror::Error)]
pub enum SysfsError {
    /// There is no PCI here at all.
    #[error("there is no PCI bus: {} does not exist", dir.display())]
    NoPci {
        /// The directory that should list the functions.
        dir: PathBuf,
    },
    /// There is no PCI function with this address.
    #[error("there is no PCI function {sbdf} in {}", dir.display())]
    NoSuchFunction {
        /// The address asked for.
        sbdf: Sbdf,
        /// Where it was looked for.
        dir: PathBuf,
    },
    /// A path given for a device does not exist.
    #[error("{} does not exist", path.display())]
    NoSuchPath {
        /// The path as given.
        path: PathBuf,
    },
    /// A path given for a device exists but is not a PCI function of this sysfs.
    #[error("{} is {}, which is not a PCI function in {}", path.display(), target.display(), dir.display())]
    NotPci {
        /// The path as given.
        path: PathBuf,
        /// What it resolves to.
        target: PathBuf,
        /// The directory in which PCI functions are listed.
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
        /// The number asked for.
        group: GroupId,
        /// Where it was looked for.
        dir: PathBuf,
    },
    /// A link does not point to what sysfs has it point to.
    #[error("{} points to {}, which is not {want}", link.display(), target.display())]
    OddLink {
        /// The link.
        link: PathBuf,
        /// Where it points.
        target: PathBuf,
        /// What it should point to.
        want: &'static str,
    },
    /// Anything else the operating system refused.
    #[error("cannot {verb} {}: {source}", path.display())]
    Io {
        /// What was attempted.
        verb: &'static str,
        /// On what.
        path: PathBuf,
        /// The errno.
        source: io::Error,
    },
}

impl SysfsError {
    /// For `map_err`: `verb` on `path` failed.
    pub(crate) fn io(verb: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { verb, path, source }
    }
}

/// Whether a lookup failed because nothing is there. `ENODEV` is what sysfs says for a device that
/// vanished between lookup and use.
pub(crate) fn is_missing(error: &io::Error) -> bool {
    // ENXIO = 6 and ENODEV = 19 on every Linux architecture.
    error.kind() == io::ErrorKind::NotFound || matches!(error.raw_os_error(), Some(6 | 19))
}
