//! Users of a function, from sysfs and procfs.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use iommu_group::{Sbdf, SysfsError};

use super::host::{Host, HostError};

/// Depth of the search for block devices and interfaces below a function's directory.
const DEPTH: usize = 12;

/// A process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct User {
    pid: u32,
    name: String,
}

impl User {
    /// The process with this directory in procfs.
    fn at(pid: u32, dir: &Path) -> Self {
        let name = fs::read_to_string(dir.join("comm")).unwrap_or_default();
        let name = name.trim().to_owned();
        Self { pid, name }
    }
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (process {})", self.name, self.pid)
    }
}

/// All processes, with their directories in procfs.
fn processes(host: &dyn Host) -> impl Iterator<Item = (u32, PathBuf)> {
    let entries = fs::read_dir(host.proc()).into_iter().flatten();
    entries.filter_map(|entry| {
        let entry = entry.ok()?;
        let pid = entry.file_name().to_str()?.parse().ok()?;
        Some((pid, entry.path()))
    })
}

/// Processes that have VFIO files open, by the targets of their descriptors.
pub(super) struct VfioUsers(Vec<(String, User)>);

impl VfioUsers {
    /// Reads the descriptors of all processes.
    pub(super) fn read(host: &dyn Host) -> Self {
        let mut users = Vec::new();
        for (pid, dir) in processes(host) {
            // Processes may end during the scan, and kernel threads have no descriptors.
            let descriptors = fs::read_dir(dir.join("fd")).into_iter().flatten();
            for descriptor in descriptors.filter_map(Result::ok) {
                let Ok(target) = fs::read_link(descriptor.path()) else {
                    continue;
                };
                let target = target.to_string_lossy();
                // In another mount namespace the path has another prefix.
                if let Some((_, file)) = target.rsplit_once("vfio/") {
                    users.push((file.to_owned(), User::at(pid, &dir)));
                }
            }
        }
        Self(users)
    }

    /// The process that has a function or its group open.
    pub(super) fn of(&self, host: &dyn Host, function: Sbdf) -> Result<Option<&User>, HostError> {
        let mut files: Vec<String> = Vec::new();
        match host.sysfs().group_of(function) {
            Ok(group) => files.push(group.to_string()),
            Err(SysfsError::NoGroup { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        let dir = host.sysfs().device_dir(function).join("vfio-dev");
        let devices = fs::read_dir(dir).into_iter().flatten();
        // The character device /dev/vfio/devices/vfioN has the same name in sysfs.
        files
            .extend(devices.filter_map(|entry| Some(entry.ok()?.file_name().to_str()?.to_owned())));
        let file = |name: &str| files.iter().any(|file| file == name);
        let user = self
            .0
            .iter()
            .find(|(path, _)| file(path) || path.strip_prefix("devices/").is_some_and(file));
        Ok(user.map(|(_, user)| user))
    }
}

/// The process that has a function or its group open.
pub(super) fn vfio_user(host: &dyn Host, function: Sbdf) -> Result<Option<User>, HostError> {
    Ok(VfioUsers::read(host).of(host, function)?.cloned())
}

/// A block device or partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Block {
    pub(super) name: String,
    /// `major:minor`.
    number: String,
    /// Devices that are built on it: LVM, MD, dm-crypt.
    pub(super) holders: Vec<String>,
}

/// The kernel devices of a function.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Offers {
    pub(super) blocks: Vec<Block>,
    /// Network interfaces that are up.
    pub(super) interfaces: Vec<String>,
}

impl Offers {
    pub(super) fn of(host: &dyn Host, function: Sbdf) -> Self {
        let mut offers = Self::default();
        offers.walk(host, &host.sysfs().device_dir(function), 0);
        offers
    }

    fn walk(&mut self, host: &dyn Host, dir: &Path, depth: usize) {
        let subsystem = fs::read_link(dir.join("subsystem")).ok();
        let subsystem = subsystem
            .as_deref()
            .and_then(Path::file_name)
            .and_then(|name| name.to_str());
        let name = dir.file_name().and_then(|name| name.to_str());
        match (subsystem, name) {
            (Some("block"), Some(name)) => {
                self.blocks.push(block(dir, name));
                if let Some(head) = multipath_head(host, name).filter(|_| depth > 0) {
                    self.walk(host, &head, 0);
                }
            }
            // IFF_UP (linux include/uapi/linux/if.h).
            (Some("net"), Some(name)) if flags(dir) & 1 != 0 => {
                self.interfaces.push(name.to_owned());
            }
            _ => {}
        }
        if depth >= DEPTH {
            return;
        }
        let entries = fs::read_dir(dir)
            .into_iter()
            .flatten()
            .filter_map(Result::ok);
        let mut below: Vec<PathBuf> = entries
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            // Child functions are checked by themselves.
            .filter(|entry| {
                let name = entry.file_name();
                name.to_str()
                    .is_some_and(|name| name.parse::<Sbdf>().is_err())
            })
            .map(|entry| entry.path())
            .collect();
        below.sort();
        for dir in below {
            self.walk(host, &dir, depth + 1);
        }
    }
}

fn flags(dir: &Path) -> u32 {
    let text = fs::read_to_string(dir.join("flags")).unwrap_or_default();
    let text = text.trim();
    u32::from_str_radix(text.strip_prefix("0x").unwrap_or(text), 16).unwrap_or(0)
}

fn block(dir: &Path, name: &str) -> Block {
    let holders = fs::read_dir(dir.join("holders")).into_iter().flatten();
    let holders = holders.filter_map(|entry| Some(entry.ok()?.file_name().to_str()?.to_owned()));
    Block {
        name: name.to_owned(),
        number: fs::read_to_string(dir.join("dev"))
            .unwrap_or_default()
            .trim()
            .to_owned(),
        holders: holders.collect(),
    }
}

/// The disk of an NVMe namespace with several paths: `nvme0n2` for the path `nvme0c1n2` (linux 7.2
/// drivers/nvme/host/multipath.c: `nvme_mpath_set_disk_name()`).
fn multipath_head(host: &dyn Host, name: &str) -> Option<PathBuf> {
    let (subsystem, rest) = name.strip_prefix("nvme")?.split_once('c')?;
    let (controller, namespace) = rest.split_once('n')?;
    let number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if ![subsystem, controller, namespace].into_iter().all(number) {
        return None;
    }
    let head = host.sysfs().root().join("class/block");
    let head = head.join(format!("nvme{subsystem}n{namespace}"));
    fs::canonicalize(head).ok()
}

/// Mounts and swap devices.
pub(super) struct Mounts {
    /// `major:minor`, source and mount point.
    mounts: Vec<(String, String, String)>,
    /// Names of block devices.
    swaps: Vec<String>,
}

impl Mounts {
    /// Reads the mounts of process 1, of this process, and of one process in each other mount namespace, such as those
    /// of containers and services.
    pub(super) fn read(host: &dyn Host) -> Self {
        let mut mounts = Vec::new();
        let mut namespaces = BTreeSet::new();
        for name in ["1", "self"] {
            let dir = host.proc().join(name);
            namespaces.extend(fs::read_link(dir.join("ns/mnt")));
            mounts.extend(mounts_of(&dir));
        }
        for (pid, dir) in processes(host) {
            // A process that has just ended has no namespace.
            let Ok(namespace) = fs::read_link(dir.join("ns/mnt")) else {
                continue;
            };
            if namespaces.insert(namespace) {
                let user = User::at(pid, &dir);
                let of_user = |(number, source, at)| (number, source, format!("{at} of {user}"));
                mounts.extend(mounts_of(&dir).into_iter().map(of_user));
            }
        }
        let swaps = fs::read_to_string(host.proc().join("swaps")).unwrap_or_default();
        let swaps = swaps
            .lines()
            .skip(1)
            .filter_map(|line| Some(base_name(line.split_whitespace().next()?).to_owned()));
        Self {
            mounts,
            swaps: swaps.collect(),
        }
    }

    /// The mount point of a block device.
    pub(super) fn at(&self, block: &Block) -> Option<&str> {
        self.mounts
            .iter()
            .find(|(number, source, _)| *number == block.number || base_name(source) == block.name)
            .map(|(_, _, at)| at.as_str())
    }

    pub(super) fn is_swap(&self, block: &Block) -> bool {
        self.swaps.contains(&block.name)
    }
}

fn base_name(path: &str) -> &str {
    path.strip_prefix("/dev/").unwrap_or_default()
}

/// The mounts of a process, by its directory in procfs.
fn mounts_of(dir: &Path) -> Vec<(String, String, String)> {
    let text = fs::read_to_string(dir.join("mountinfo")).unwrap_or_default();
    text.lines().filter_map(mount).collect()
}

/// Parses a line of `mountinfo` (linux Documentation/filesystems/proc.rst §3.5).
fn mount(line: &str) -> Option<(String, String, String)> {
    let mut words = line.split(' ');
    let (number, at) = (words.nth(2)?, words.nth(1)?);
    let source = words.skip_while(|word| *word != "-").nth(2)?;
    Some((number.to_owned(), source.to_owned(), at.to_owned()))
}

/// The kernel's lockdown mode, if it restricts root.
pub(super) fn lockdown(host: &dyn Host) -> Option<String> {
    let file = host.sysfs().root().join("kernel/security/lockdown");
    let text = fs::read_to_string(file).ok()?;
    let mode = text.split_once('[')?.1.split_once(']')?.0;
    (mode != "none").then(|| mode.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_lines_are_parsed() {
        let line = "36 35 259:3 / /data rw,noatime shared:1 - ext4 /dev/nvme1n1p1 rw";
        let (number, source, at) = mount(line).unwrap();
        assert_eq!(
            (number.as_str(), source.as_str(), at.as_str()),
            ("259:3", "/dev/nvme1n1p1", "/data")
        );
        assert_eq!(mount("36 35"), None);
        assert_eq!(mount("36 35 259:3 / /data rw ext4 /dev/x"), None);
    }
}
