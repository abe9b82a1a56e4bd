//! The files that a thread may open: a Landlock ruleset per thread.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd,
    Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};
use vmm_api::{OptionError, Options, SerialConfig, VmConfig};

/// The newest Landlock ABI that this code knows; an older kernel enforces the rules that it supports.
const KNOWN: ABI = ABI::V6;

/// Files that the host's topology is read from. None of them is ever written.
const TOPOLOGY: [&str; 10] = [
    "/sys/bus/pci",
    "/sys/bus/pci_express",
    "/sys/class/iommu",
    "/sys/devices",
    "/sys/kernel/iommu_groups",
    "/sys/module",
    "/proc/bus/pci/devices",
    "/proc/cmdline",
    "/proc/cpuinfo",
    "/proc/sys/kernel/osrelease",
];
/// Directories in which devices are looked up by name. No file in them is opened.
const NAMES: [&str; 4] = [
    "/sys/bus/pci",
    "/sys/class/iommu",
    "/sys/devices",
    "/sys/kernel/iommu_groups",
];
/// The capability registers of Intel's IOMMUs.
const IOMMU: &str = "/sys/devices/virtual/iommu";
/// Device files for VMs.
const DEVICES: [&str; 3] = ["/dev/kvm", "/dev/vfio", "/dev/iommu"];

/// Permitted access to a file, or to everything below a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Allowed {
    /// List directories.
    List,
    Read,
    ReadAndWrite,
    /// Open and use as a device.
    Device,
    /// Remove files from a directory.
    Remove,
}

/// A path and the permitted access.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FileRule {
    path: PathBuf,
    allowed: Allowed,
}

impl FileRule {
    fn new(path: impl Into<PathBuf>, allowed: Allowed) -> Self {
        let path = path.into();
        Self { path, allowed }
    }

    /// The rules of the main thread for a VM.
    pub(super) fn of_vm(config: &VmConfig) -> Vec<Self> {
        let payload = [
            Some(&config.payload.kernel),
            config.payload.initramfs.as_ref(),
        ];
        let payload = payload.into_iter().flatten();
        let serial = match &config.serial {
            SerialConfig::File(path) => Some(Self::new(path, Allowed::ReadAndWrite)),
            SerialConfig::Tty | SerialConfig::Null | SerialConfig::Off => None,
        };
        let names = NAMES.map(|path| Self::new(path, Allowed::List));
        let devices = DEVICES.map(|path| Self::new(path, Allowed::Device));
        let payload = payload.map(|path| Self::new(path, Allowed::Read));
        names
            .into_iter()
            .chain([Self::new(IOMMU, Allowed::Read)])
            .chain(devices)
            .chain(payload)
            .chain(serial)
            .collect()
    }

    /// The rules for the host's topology.
    pub(super) fn of_topology() -> [Self; TOPOLOGY.len()] {
        TOPOLOGY.map(|path| Self::new(path, Allowed::Read))
    }

    /// The rule to remove the API socket at the end.
    pub(super) fn of_socket(socket: &Path) -> Self {
        let directory = socket
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty());
        Self::new(directory.unwrap_or(Path::new(".")), Allowed::Remove)
    }
}

/// `path=PATH,access=r|rw`, as in cloud-hypervisor.
impl FromStr for FileRule {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let options = Options::parse(text, &["path", "access"])?;
        let allowed = match options.required("access")? {
            "r" => Allowed::Read,
            "rw" => Allowed::ReadAndWrite,
            other => {
                return Err(OptionError::BadValue {
                    key: "access".to_owned(),
                    value: other.to_owned(),
                    expected: "r or rw".to_owned(),
                });
            }
        };
        Ok(Self::new(options.required("path")?, allowed))
    }
}

impl Allowed {
    fn access(self) -> BitFlags<AccessFs> {
        let read = AccessFs::ReadFile | AccessFs::ReadDir;
        let write = AccessFs::WriteFile | AccessFs::Truncate | AccessFs::MakeReg;
        match self {
            Self::List => AccessFs::ReadDir.into(),
            Self::Read => read,
            Self::ReadAndWrite => read | write,
            Self::Device => read | AccessFs::WriteFile | AccessFs::IoctlDev,
            Self::Remove => AccessFs::RemoveFile.into(),
        }
    }
}

/// Restricts this thread, and the threads that it starts, to the files of `rules`. Paths that do not exist are left
/// out. Returns whether the kernel enforces the rules.
pub(super) fn restrict_to<'a>(
    rules: impl IntoIterator<Item = &'a FileRule>,
) -> Result<bool, RulesetError> {
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(KNOWN))?
        .handle_access(AccessNet::from_all(KNOWN))?
        .scope(Scope::AbstractUnixSocket)?
        .create()?;
    for rule in rules {
        match PathFd::new(&rule.path) {
            Ok(fd) => {
                // Rights for directories do not apply to a file.
                let directory = rule.path.is_dir();
                let of_files = AccessFs::from_file(KNOWN);
                let access = rule.allowed.access();
                let access = if directory { access } else { access & of_files };
                ruleset = ruleset.add_rule(PathBeneath::new(fd, access))?;
            }
            Err(error) => log::debug!("cannot permit a file, which is left out: {error}"),
        }
    }
    let status = ruleset.restrict_self()?;
    Ok(status.ruleset != RulesetStatus::NotEnforced)
}
