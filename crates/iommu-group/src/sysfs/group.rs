//! IOMMU groups of the running kernel.

use std::fs;

use super::device::link_name;
use super::error::is_missing;
use super::{Sysfs, SysfsError};
use crate::{DriverKind, GroupId, Sbdf};

/// A member of an IOMMU group.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct GroupMember {
    /// The address. `None` for a member that is not a PCI function, such as a platform device.
    pub sbdf: Option<Sbdf>,
    /// The name of the device in sysfs.
    pub name: String,
    /// The driver bound to it, if any.
    pub driver: Option<String>,
}

impl GroupMember {
    /// The kind of the driver bound to it.
    #[must_use]
    pub fn driver_kind(&self) -> DriverKind {
        DriverKind::of(self.driver.as_deref())
    }
}

impl Sysfs {
    /// The IOMMU group of a function.
    pub fn group_of(&self, sbdf: Sbdf) -> Result<GroupId, SysfsError> {
        let link = self.device_dir(sbdf).join("iommu_group");
        let Some(name) = link_name(&link)? else {
            self.must_exist(sbdf)?;
            return Err(SysfsError::NoGroup { sbdf });
        };
        name.parse().map(GroupId).map_err(|_| SysfsError::OddLink {
            link,
            target: name.into(),
            want: "an IOMMU group",
        })
    }

    /// The members of a group, sorted by address. Members that are not PCI functions come last.
    pub fn group_members(&self, group: GroupId) -> Result<Vec<GroupMember>, SysfsError> {
        let dir = self.groups_dir().join(group.to_string()).join("devices");
        let entries = fs::read_dir(&dir).map_err(|error| {
            if is_missing(&error) {
                SysfsError::NoSuchGroup {
                    group,
                    dir: self.groups_dir(),
                }
            } else {
                SysfsError::io("list", &dir)(error)
            }
        })?;
        let mut members = Vec::new();
        for entry in entries {
            let entry = entry.map_err(SysfsError::io("list", &dir))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            members.push(GroupMember {
                sbdf: name.parse().ok(),
                driver: link_name(&entry.path().join("driver"))?,
                name,
            });
        }
        members.sort_by(|a, b| {
            let key = |m: &GroupMember| (m.sbdf.is_none(), m.sbdf);
            key(a).cmp(&key(b)).then_with(|| a.name.cmp(&b.name))
        });
        Ok(members)
    }

    /// The numbers of all IOMMU groups, ascending. Empty if no IOMMU is in use.
    pub fn groups(&self) -> Result<Vec<GroupId>, SysfsError> {
        let dir = self.groups_dir();
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) if is_missing(&error) => return Ok(Vec::new()),
            Err(error) => return Err(SysfsError::io("list", &dir)(error)),
        };
        let mut groups = Vec::new();
        for entry in entries {
            let entry = entry.map_err(SysfsError::io("list", &dir))?;
            if let Some(number) = entry.file_name().to_str().and_then(|n| n.parse().ok()) {
                groups.push(GroupId(number));
            }
        }
        groups.sort_unstable();
        Ok(groups)
    }
}
