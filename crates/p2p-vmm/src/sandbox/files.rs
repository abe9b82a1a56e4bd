//! Which files a thread may still open: a Landlock ruleset of its own.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use hotplug::{OptionError, Options, SerialConfig, VmConfig};
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd,
    Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};

/// The newest Landlock whose rules are known here; a kernel with an older one enforces what it has.
const KNOWN: ABI = ABI::V6;

/// What the host's topology is read from; nothing there is ever written.
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
/// Where devices are looked up by name: directories and links, and no file.
const NAMES: [&str; 4] = [
    "/sys/bus/pci",
    "/sys/class/iommu",
    "/sys/devices",
    "/sys/kernel/iommu_groups",
];
/// What the units of Intel's IOMMU can address.
const IOMMU: &str = "/sys/devices/virtual/iommu";
/// What VMs are made with.
const DEVICES: [&str; 3] = ["/dev/kvm", "/dev/vfio", "/dev/iommu"];

/// What is allowed below a directory, or with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Allowed {
    /// See what is in directories.
    List,
    Read,
    ReadAndWrite,
    /// Open and use as a device.
    Device,
    /// Take files away from a directory.
    Remove,
}

/// A path, and what may be done there.
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

    /// What the main thread needs for a VM.
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

    /// What the host's topology is read from.
    pub(super) fn of_topology() -> [Self; TOPOLOGY.len()] {
        TOPOLOGY.map(|path| Self::new(path, Allowed::Read))
    }

    /// What it takes to remove the socket at the end.
    pub(super) fn of_socket(socket: &Path) -> Self {
        let directory = socket
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty());
        Self::new(directory.unwrap_or(Path::new(".")), Allowed::Remove)
    }
}

/// `path=PATH,access=r|rw`, as cloud-hypervisor has it.
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

/// Lets this thread, and what it starts, open only what `rules` have; what is not there is left out. Whether the kernel
/// enforces it.
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
                // What only directories have is no matter of a file.
                let directory = rule.path.is_dir();
                let of_files = AccessFs::from_file(KNOWN);
                let access = rule.allowed.access();
                let access = if directory { access } else { access & of_files };
                ruleset = ruleset.add_rule(PathBeneath::new(fd, access))?;
            }
            Err(error) => log::debug!("not among the files of this VMM: {error}"),
        }
    }
    let status = ruleset.restrict_self()?;
    Ok(status.ruleset != RulesetStatus::NotEnforced)
}
