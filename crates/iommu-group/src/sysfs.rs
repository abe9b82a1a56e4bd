//! A sysfs tree: the live `/sys` or a directory with the same layout.

mod device;
mod error;
mod group;
mod iommu;

use std::path::{Path, PathBuf};

pub use error::SysfsError;
pub(crate) use error::is_missing;
pub use group::GroupMember;

use crate::Sbdf;

/// Reader of a sysfs tree. It never writes to the tree.
///
/// ```no_run
/// use iommu_group::Sysfs;
///
/// let sysfs = Sysfs::default();
/// let nvme = sysfs.resolve("/sys/bus/pci/devices/0000:03:00.0".as_ref())?;
/// let group = sysfs.group_of(nvme)?;
/// for member in sysfs.group_members(group)? {
///     println!("{} {:?}", member.name, member.driver);
/// }
/// # Ok::<(), iommu_group::SysfsError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Sysfs {
    root: PathBuf,
}

impl Default for Sysfs {
    /// The running system's `/sys`.
    fn default() -> Self {
        Self::new("/sys")
    }
}

impl Sysfs {
    /// A tree with the directories `bus/pci/devices` and `kernel/iommu_groups` below `root`. Reads nothing yet.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The directory used as `/sys`.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The directory of a function, `bus/pci/devices/<address>` below the root. It need not exist.
    #[must_use]
    pub fn device_dir(&self, sbdf: Sbdf) -> PathBuf {
        let mut path = self.devices_dir();
        path.push(sbdf.to_string());
        path
    }

    /// The directory that lists all PCI functions.
    fn devices_dir(&self) -> PathBuf {
        self.root.join("bus/pci/devices")
    }

    /// The directory that lists all IOMMU groups.
    fn groups_dir(&self) -> PathBuf {
        self.root.join("kernel/iommu_groups")
    }
}
