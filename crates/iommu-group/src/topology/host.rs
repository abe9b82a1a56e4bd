//! Facts about a host, other than its PCI functions, that decisions need.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::Sysfs;

/// Facts about a host other than its PCI functions. Each may be unknown; decisions then state their assumptions.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Host {
    /// Kernel release, as printed by `uname -r`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel_release: Option<String>,
    /// The words of the kernel's command line that affect ACS, groups and routes. Other words are not stored.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kernel_arguments: Vec<String>,
    /// The CPU, on x86.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Cpu>,
    /// The IOMMU driven by Linux.
    #[serde(default)]
    pub iommu: Iommu,
    /// Functions that the kernel added out of address order: functions that were removed and found again, and virtual
    /// functions. Each is written as bus, device and function as printed by `lspci`, in the order of addition. If
    /// several neighbours have a group that a new function can join, Linux selects the group of the neighbour that was
    /// added first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub added_later: Vec<String>,
    /// Kernel modules whose parameter `allow_unsafe_interrupts` is set. They also assign devices whose interrupts are
    /// not isolated. Such a device can raise any interrupt of the host by a DMA write (linux 7.2
    /// drivers/vfio/vfio_iommu_type1.c: `vfio_iommu_type1_attach_group()`; drivers/iommu/iommufd/device.c:
    /// `iommufd_group_setup_msi()`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unsafe_interrupts: Vec<String>,
}

/// A CPU, with the properties that `pci_p2pdma` checks (linux 7.2 drivers/pci/p2pdma.c: `cpu_supports_p2pdma()`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cpu {
    /// CPUID vendor string, such as `AuthenticAMD`.
    pub vendor: String,
    /// CPU family, including the extended family.
    pub family: u32,
}

/// The kind of IOMMU driven by Linux.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Iommu {
    /// Unknown.
    #[default]
    Unknown,
    /// No IOMMU is in use.
    None,
    /// Intel VT-d.
    Intel,
    /// AMD-Vi.
    Amd,
    /// Another kind: Arm SMMU, virtio, RISC-V.
    Other,
}

/// Names of the kernel parameters that are stored: the part before `=`.
const ARGUMENTS: [&str; 12] = [
    "pci",
    "pcie_acs_override",
    "pcie_port_pm",
    "pcie_ports",
    "iommu",
    "iommu.passthrough",
    "iommu.strict",
    "intel_iommu",
    "amd_iommu",
    "iommufd.allow_unsafe_interrupts",
    "vfio_iommu_type1.allow_unsafe_interrupts",
    "vfio_iommu_type1.disable_hugepages",
];

/// The kernel modules that assign devices to virtual machines.
const ASSIGNING_MODULES: [&str; 2] = ["vfio_iommu_type1", "iommufd"];

impl Host {
    /// Reads `/proc` (or a directory in its place) and the list of IOMMUs in sysfs. Facts that cannot be read stay
    /// unknown.
    #[must_use]
    pub fn read(proc: &Path, sysfs: &Sysfs) -> Self {
        let text = |file: &str| fs::read_to_string(proc.join(file)).ok();
        let kernel_arguments = text("cmdline")
            .map(|line| relevant_arguments(&line))
            .unwrap_or_default();
        Self {
            kernel_release: text("sys/kernel/osrelease").map(|release| release.trim().to_owned()),
            unsafe_interrupts: ASSIGNING_MODULES
                .into_iter()
                .filter(|module| allows_unsafe_interrupts(module, sysfs, &kernel_arguments))
                .map(str::to_owned)
                .collect(),
            kernel_arguments,
            cpu: text("cpuinfo").and_then(|info| Cpu::parse(&info)),
            iommu: Iommu::read(sysfs),
            added_later: text("bus/pci/devices")
                .map(|list| added_later(&list))
                .unwrap_or_default(),
        }
    }
}

/// Whether a module assigns devices whose interrupts are not isolated. A module that is not loaded yet gets its
/// parameters from the kernel's command line.
fn allows_unsafe_interrupts(module: &str, sysfs: &Sysfs, kernel_arguments: &[String]) -> bool {
    let parameter = format!("module/{module}/parameters/allow_unsafe_interrupts");
    if let Ok(value) = fs::read_to_string(sysfs.root().join(parameter)) {
        return value.trim() == "Y";
    }
    let name = format!("{module}.allow_unsafe_interrupts");
    let mut values = kernel_arguments.iter().filter_map(|argument| {
        let (key, value) = argument.split_once('=').unwrap_or((argument, "y"));
        (key.replace('-', "_") == name).then_some(value)
    });
    // linux 7.2 lib/kstrtox.c: `kstrtobool()`. The last value takes effect.
    values.next_back().is_some_and(|value| {
        let value = value.to_ascii_lowercase();
        value.starts_with(['y', 't', '1']) || value.starts_with("on")
    })
}

/// The entries of `/proc/bus/pci/devices` from the first one that is out of ascending order. The file has the order of
/// the kernel's device list (linux 7.2 drivers/pci/proc.c: `pci_seq_next()`); the first word of a line is bus and
/// function number.
fn added_later(list: &str) -> Vec<String> {
    let numbers = list.lines().filter_map(|line| {
        let word = line.split_ascii_whitespace().next()?;
        u16::from_str_radix(word, 16).ok()
    });
    let numbers: Vec<u16> = numbers.collect();
    let pairs = numbers.iter().zip(numbers.iter().skip(1));
    let ascending = pairs.take_while(|(a, b)| a < b).count() + 1;
    let name = |number: &u16| {
        let [bus, devfn] = number.to_be_bytes();
        format!("{bus:02x}:{:02x}.{:x}", devfn >> 3, devfn & 7)
    };
    numbers.iter().skip(ascending).map(name).collect()
}

/// The words of a kernel command line whose names are in `ARGUMENTS`. Quotes may enclose parts of a word that contain
/// blanks.
fn relevant_arguments(command_line: &str) -> Vec<String> {
    let mut quoted = false;
    command_line
        .split(|c: char| {
            quoted ^= c == '"';
            c.is_ascii_whitespace() && !quoted
        })
        .map(|word| word.replace('"', ""))
        .filter(|word| {
            let name = word.split_once('=').map_or(word.as_str(), |(name, _)| name);
            // In parameter names the kernel treats `-` and `_` as the same.
            let name = name.replace('-', "_");
            ARGUMENTS.contains(&name.as_str())
        })
        .collect()
}

impl Cpu {
    /// Whether Linux on this CPU assumes that every host bridge routes between devices: AMD from Zen on (linux 7.2
    /// drivers/pci/p2pdma.c: `cpu_supports_p2pdma()`). A guest on such a CPU accepts P2PDMA between any two of its
    /// devices.
    #[must_use]
    pub fn supports_p2pdma(&self) -> bool {
        self.vendor == "AuthenticAMD" && self.family >= 0x17
    }

    /// Parses the first processor of `/proc/cpuinfo`. `None` if the file does not have the x86 format.
    fn parse(cpuinfo: &str) -> Option<Self> {
        let value = |key: &str| {
            cpuinfo
                .lines()
                .take_while(|line| !line.is_empty())
                .filter_map(|line| line.split_once(':'))
                .find(|(name, _)| name.trim() == key)
                .map(|(_, value)| value.trim())
        };
        Some(Self {
            vendor: value("vendor_id")?.to_owned(),
            family: value("cpu family")?.parse().ok()?,
        })
    }
}

impl Iommu {
    fn read(sysfs: &Sysfs) -> Self {
        let Ok(entries) = fs::read_dir(sysfs.root().join("class/iommu")) else {
            return Self::Unknown;
        };
        let names: Vec<String> = entries
            .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
            .collect();
        match names.iter().min() {
            None => Self::None,
            Some(name) if name.starts_with("dmar") => Self::Intel,
            Some(name) if name.starts_with("ivhd") => Self::Amd,
            Some(_) => Self::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_added_out_of_order_is_known() {
        let list = "0000\t808629c0\t0\n0028\t1b36000c\t0\n002b\t1b36000c\t0\n002a\t1b36000c\t0\n0500\t123411e8\t0\n";
        assert_eq!(added_later(list), ["00:05.2", "05:00.0"]);
        assert!(added_later("0000 x\n0008 y\n").is_empty());
        assert!(added_later("").is_empty() && added_later("nonsense\n").is_empty());
    }

    #[test]
    fn only_what_matters_is_kept_of_the_command_line() {
        let line = "BOOT_IMAGE=/vmlinuz root=UUID=1234 intel_iommu=on \"pci=noats,config_acs=100x1@pci:0:0\" \
                    iommu=pt pcie-acs-override=downstream foo=\"a b iommu=off\" intel_iommu.x=1 quiet\n";
        assert_eq!(
            relevant_arguments(line),
            [
                "intel_iommu=on",
                "pci=noats,config_acs=100x1@pci:0:0",
                "iommu=pt",
                "pcie-acs-override=downstream"
            ]
        );
    }

    #[test]
    fn modules_that_assign_devices_without_isolated_interrupts_are_known() {
        let dir = tempfile::tempdir().unwrap();
        let (proc, sys) = (dir.path().join("proc"), dir.path().join("sys"));
        let found = || Host::read(&proc, &Sysfs::new(&sys)).unsafe_interrupts;
        fs::create_dir(&proc).unwrap();
        assert!(found().is_empty());
        for (line, modules) in [
            (
                "vfio_iommu_type1.allow_unsafe_interrupts=1",
                vec!["vfio_iommu_type1"],
            ),
            (
                "vfio-iommu-type1.allow-unsafe-interrupts",
                vec!["vfio_iommu_type1"],
            ),
            ("iommufd.allow_unsafe_interrupts=on", vec!["iommufd"]),
            (
                "iommufd.allow_unsafe_interrupts=y iommufd.allow_unsafe_interrupts=off",
                vec![],
            ),
            ("iommufd.allow_unsafe_interrupts=0", vec![]),
        ] {
            fs::write(proc.join("cmdline"), line).unwrap();
            assert_eq!(found(), modules, "{line}");
        }
        // For a loaded module the parameter in sysfs is the current value.
        fs::write(proc.join("cmdline"), "iommufd.allow_unsafe_interrupts=1").unwrap();
        for (module, value) in [("vfio_iommu_type1", "Y\n"), ("iommufd", "N\n")] {
            let parameters = sys.join("module").join(module).join("parameters");
            fs::create_dir_all(&parameters).unwrap();
            fs::write(parameters.join("allow_unsafe_interrupts"), value).unwrap();
        }
        assert_eq!(found(), ["vfio_iommu_type1"]);
    }

    #[test]
    fn the_first_processor_counts() {
        let info = "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 25\n\nprocessor\t: 1\nvendor_id\t: X\n";
        let cpu = Cpu::parse(info).unwrap();
        assert_eq!((cpu.vendor.as_str(), cpu.family), ("AuthenticAMD", 25));
        assert_eq!(
            Cpu::parse("processor\t: 0\nBogoMIPS\t: 100\nFeatures\t: fp\n"),
            None
        );
    }

    #[test]
    fn a_host_is_read_and_missing_things_stay_unknown() {
        let dir = tempfile::tempdir().unwrap();
        let sysfs = Sysfs::new(dir.path().join("sys"));
        assert_eq!(
            Host::read(&dir.path().join("proc"), &sysfs),
            Host::default()
        );
        fs::create_dir_all(dir.path().join("sys/class/iommu")).unwrap();
        assert_eq!(Iommu::read(&sysfs), Iommu::None);
        for (name, kind) in [
            ("smmu3.0x1", Iommu::Other),
            ("ivhd0", Iommu::Amd),
            ("dmar0", Iommu::Intel),
        ] {
            fs::create_dir(dir.path().join("sys/class/iommu").join(name)).unwrap();
            assert_eq!(Iommu::read(&sysfs), kind);
        }
        fs::create_dir_all(dir.path().join("proc/sys/kernel")).unwrap();
        fs::write(
            dir.path().join("proc/sys/kernel/osrelease"),
            "7.2.12-amd64\n",
        )
        .unwrap();
        let host = Host::read(&dir.path().join("proc"), &sysfs);
        assert_eq!(host.kernel_release.as_deref(), Some("7.2.12-amd64"));
    }
}
