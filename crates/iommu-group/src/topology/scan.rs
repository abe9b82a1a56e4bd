//! Reading a topology from sysfs.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::raw_function::KernelIds;
use super::{Host, Parent, RawFunction, ResourceLines, Topology};
use crate::config::{ConfigSpace, Ids};
use crate::sysfs::{SysfsError, is_missing};
use crate::{GroupId, Sbdf, Sysfs};

impl Topology {
    /// Reads every PCI function below `sysfs`. Functions that are removed during the scan are skipped. Values that the
    /// caller may not read are unknown. Returns an error only if there is no PCI bus or if sysfs itself fails.
    pub fn scan(sysfs: &Sysfs, host: Host) -> Result<Self, SysfsError> {
        let dir = sysfs.root().join("bus/pci/devices");
        let entries = fs::read_dir(&dir).map_err(|error| {
            if is_missing(&error) {
                SysfsError::NoPci { dir: dir.clone() }
            } else {
                SysfsError::io("list", &dir)(error)
            }
        })?;
        let hotplug = native_hotplug_ports(sysfs);
        let mut scanner = Scanner::default();
        let mut raw = Vec::new();
        for entry in entries {
            let entry = entry.map_err(SysfsError::io("list", &dir))?;
            let Some(sbdf) = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok())
            else {
                continue;
            };
            if let Some(mut found) = scanner.function(entry.path(), sbdf)? {
                found.native_hotplug = hotplug.contains(&sbdf);
                raw.push(found);
            }
        }
        Ok(Self::build(host, raw))
    }
}

/// The ports served by the native hot-plug driver. Its services are named after the ports, such as
/// `0000:00:04.0:pcie004`.
fn native_hotplug_ports(sysfs: &Sysfs) -> HashSet<Sbdf> {
    let Ok(services) = fs::read_dir(sysfs.root().join("bus/pci_express/drivers/pciehp")) else {
        return HashSet::new();
    };
    services
        .filter_map(|entry| {
            let name = entry.ok()?.file_name();
            name.to_str()?.rsplit_once(':')?.0.parse().ok()
        })
        .collect()
}

/// Reads functions one by one and reuses its buffers.
struct Scanner {
    text: Box<[u8; 4096]>,
}

impl Default for Scanner {
    fn default() -> Self {
        Self {
            text: Box::new([0; 4096]),
        }
    }
}

impl Scanner {
    /// Reads a function. `None` if it was removed.
    fn function(
        &mut self,
        mut dir: PathBuf,
        sbdf: Sbdf,
    ) -> Result<Option<RawFunction>, SysfsError> {
        let parent = match fs::read_link(&dir) {
            Ok(target) => parent_in(&target),
            // EINVAL: a directory instead of a link, as in copied trees.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => Parent::ByBusNumber,
            Err(error) if is_missing(&error) => return Ok(None),
            Err(error) => return Err(SysfsError::io("read the link", &dir)(error)),
        };
        dir.push("config");
        let space = match File::open(&dir) {
            Ok(file) => ConfigSpace::collect(&file),
            Err(error) if is_missing(&error) => {
                dir.pop();
                if !dir.exists() {
                    return Ok(None);
                }
                dir.push("config");
                ConfigSpace::default()
            }
            // Access is denied: the configuration space stays unknown.
            Err(_) => ConfigSpace::default(),
        };
        dir.pop();
        // The vendor ID of virtual functions and of functions that do not respond reads ffff.
        let speaks = space.u16(0).is_some_and(|vendor| vendor != 0xffff);
        let known_as = if speaks {
            None
        } else {
            self.known_as(&mut dir, &space)
        };
        let physical_function = if speaks {
            None
        } else {
            link(&mut dir, "physfn").and_then(|name| name.parse().ok())
        };
        let resources = self
            .read(&mut dir, "resource")
            .map(ResourceLines::parse)
            .unwrap_or_default();
        let numa_node = self
            .read(&mut dir, "numa_node")
            .and_then(|text| text.trim_end().parse().ok());
        let reset_methods = self
            .read(&mut dir, "reset_method")
            .map(str::trim_end)
            .filter(|words| !words.is_empty())
            .map(Into::into);
        Ok(Some(RawFunction {
            sbdf,
            parent,
            known_as,
            space,
            resources,
            driver: link(&mut dir, "driver").map(Into::into),
            group: link(&mut dir, "iommu_group")
                .and_then(|name| name.parse().ok())
                .map(GroupId),
            numa_node,
            reset_methods,
            physical_function,
            native_hotplug: false,
        }))
    }

    /// Reads the text of an attribute. `None` if it cannot be read. The kernel returns the whole text in one read.
    fn read(&mut self, dir: &mut PathBuf, name: &str) -> Option<&str> {
        dir.push(name);
        let file = File::open(&*dir);
        dir.pop();
        let len = file
            .and_then(|mut file| file.read(self.text.as_mut_slice()))
            .ok()?;
        std::str::from_utf8(self.text.get(..len)?).ok()
    }

    fn known_as(&mut self, dir: &mut PathBuf, space: &ConfigSpace) -> Option<KernelIds> {
        let mut number = |name| {
            let text = self.read(dir, name)?.trim_end();
            u32::from_str_radix(text.strip_prefix("0x").unwrap_or(text), 16).ok()
        };
        let mut word = |name| number(name).and_then(|value| u16::try_from(value).ok());
        let (vendor, device) = (word("vendor")?, word("device")?);
        let subsystem_vendor = word("subsystem_vendor").unwrap_or(0);
        let subsystem_device = word("subsystem_device").unwrap_or(0);
        // A virtual function has its class in configuration space. A function that does not respond reads as all ones.
        let class = match space.u32(0x08) {
            Some(value) if value != u32::MAX => value >> 8,
            _ => number("class")?,
        };
        Some(KernelIds {
            ids: Ids {
                vendor,
                device,
                subsystem_vendor,
                subsystem_device,
            },
            class,
        })
    }
}

/// The last component of the target of the link `dir/name`. `None` if there is no such link.
fn link(dir: &mut PathBuf, name: &str) -> Option<String> {
    dir.push(name);
    let target = fs::read_link(&*dir);
    dir.pop();
    let target = target.ok()?;
    Some(target.file_name()?.to_str()?.to_owned())
}

/// The parent of a function, from the path of its directory: `…/pci0000:00/0000:00:04.0/0000:01:00.0`.
fn parent_in(target: &Path) -> Parent {
    let mut above = target
        .parent()
        .into_iter()
        .flat_map(Path::ancestors)
        .filter_map(|path| path.file_name()?.to_str());
    let Some(parent) = above.next() else {
        return Parent::ByBusNumber;
    };
    if let Ok(bridge) = parent.parse() {
        return Parent::Bridge(bridge);
    }
    let numbers = parent
        .strip_prefix("pci")
        .and_then(|rest| rest.split_once(':'));
    let root = numbers.and_then(|(domain, bus)| {
        Some((
            u32::from_str_radix(domain, 16).ok()?,
            u8::from_str_radix(bus, 16).ok()?,
        ))
    });
    match root {
        Some((domain, bus)) => Parent::Root {
            domain,
            bus,
            behind: above.next().and_then(|name| name.parse().ok()),
        },
        None => Parent::ByBusNumber,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_tells_the_parent() {
        let root = |domain, bus, behind| Parent::Root {
            domain,
            bus,
            behind,
        };
        for (path, parent) in [
            ("../../../devices/pci0000:00/0000:00:04.0", root(0, 0, None)),
            (
                "../../../devices/platform/40000000.pcie/pci0001:40/0001:40:00.0",
                root(1, 0x40, None),
            ),
            (
                "../../../devices/pci0000:00/0000:00:04.0/0000:01:00.0",
                Parent::Bridge("00:04.0".parse().unwrap()),
            ),
            (
                "../../../devices/pci0000:00/0000:00:0e.0/pci10000:e0/10000:e0:06.0",
                root(0x1_0000, 0xe0, "00:0e.0".parse().ok()),
            ),
            ("somewhere/0000:00:04.0", Parent::ByBusNumber),
            ("0000:00:04.0", Parent::ByBusNumber),
            ("devices/pci:00/0000:00:04.0", Parent::ByBusNumber),
        ] {
            assert_eq!(parent_in(Path::new(path)), parent, "{path}");
        }
    }
}
