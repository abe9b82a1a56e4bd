//! Description of the machine that plays the lab host.
//!
//! A profile is written as TOML under `resources/lab/`, or built in Rust. [`Profile::parse`] and [`Profile::check`]
//! name the wrong key or id; [`Profile::device_args`] turns a valid profile into QEMU arguments and has no side
//! effects.

mod args;
mod check;

use std::collections::BTreeMap;

use anyhow::Context;
use iommu_group::AcsBits;
use serde::{Deserialize, Deserializer, Serialize};

pub(crate) use args::escape;
pub use check::ProfileError;

/// QEMU's name of the bus that the root complex provides.
pub const ROOT_BUS: &str = "pcie.0";

/// A lab host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// The machine's purpose in one line.
    pub description: String,
    /// Processors, memory, kernel command line.
    #[serde(default)]
    pub machine: Machine,
    /// The IOMMU; none if absent.
    #[serde(default)]
    pub iommu: Option<Iommu>,
    /// Further root complexes.
    #[serde(
        default,
        rename = "root_complex",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub root_complexes: Vec<RootComplex>,
    /// Root ports.
    #[serde(default, rename = "root_port", skip_serializing_if = "Vec::is_empty")]
    pub root_ports: Vec<RootPort>,
    /// PCIe switches.
    #[serde(default, rename = "switch", skip_serializing_if = "Vec::is_empty")]
    pub switches: Vec<Switch>,
    /// PCIe-to-PCI bridges.
    #[serde(default, rename = "pci_bridge", skip_serializing_if = "Vec::is_empty")]
    pub pci_bridges: Vec<PciBridge>,
    /// Disk images, created empty for every lab.
    #[serde(default, rename = "drive", skip_serializing_if = "Vec::is_empty")]
    pub drives: Vec<Drive>,
    /// Memory that a device exposes in a BAR and that the harness can read as a file.
    #[serde(
        default,
        rename = "shared_memory",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub shared_memories: Vec<SharedMemory>,
    /// All devices in slots.
    #[serde(default, rename = "device", skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<Device>,
}

/// Processors, memory, kernel command line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Machine {
    /// Size of the lab host's memory in MiB.
    pub memory_mib: u32,
    /// Processors of the lab host. With more than one, the emulation of nested virtualisation sometimes leaves all of
    /// them halted for good. The risk grows with the work that a guest leaves to its VMM.
    pub cpus: u32,
    /// Width of a physical address in bits, as the processors report it; the emulator's 40 if absent. The firmware
    /// places 64-bit BARs below the end of this range, so a client machine has 39 here and in its IOMMU.
    pub address_bits: Option<u8>,
    /// Processor family, if it matters: Linux relies on root complexes of AMD processors from family 23 on to route
    /// between devices. With `LAB_ACCEL=kvm` the vendor is still the host's.
    pub cpu_family: Option<u8>,
    /// Whether systemd is the first process, with the agent beside it.
    pub systemd: bool,
    /// Whether the route of each DMA request is written to a file: see [`Lab::trace`](crate::Lab::trace).
    pub trace: bool,
    /// Words added to the kernel command line.
    pub cmdline: Vec<String>,
}

impl Default for Machine {
    fn default() -> Self {
        Self {
            memory_mib: 3072,
            cpus: 1,
            address_bits: None,
            cpu_family: None,
            systemd: false,
            trace: false,
            cmdline: Vec::new(),
        }
    }
}

/// An emulated VT-d.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Iommu {
    /// Width of an I/O virtual address in bits: 39 or 48.
    pub address_bits: u8,
    /// Whether devices may translate addresses themselves (ATS).
    pub device_iotlb: bool,
}

impl Default for Iommu {
    fn default() -> Self {
        Self {
            address_bits: 48,
            device_iotlb: false,
        }
    }
}

/// A PCI expander: a root complex with its own buses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RootComplex {
    /// Name of its root bus.
    pub id: String,
    /// Number of its root bus.
    pub bus_number: u8,
}

/// A root port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RootPort {
    /// Name of the bus below it.
    pub id: String,
    /// The root bus that it sits on.
    #[serde(default = "root_bus")]
    pub bus: String,
    /// Slot and function as QEMU spells them, `4.0`; chosen by QEMU if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub addr: Option<String>,
    /// Whether other functions share the slot.
    #[serde(default)]
    pub multifunction: bool,
    /// Its ACS capability bits: see [`Switch::acs`]. Stock QEMU has `none` and `standard`.
    #[serde(default = "standard_acs", deserialize_with = "acs_caps")]
    pub acs: AcsBits,
}

/// A switch: one upstream port and its downstream ports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Switch {
    /// Name of the bus between its ports.
    pub id: String,
    /// The port above.
    pub bus: String,
    /// Names of the buses below its downstream ports, in slot order.
    pub downstream: Vec<String>,
    /// ACS capability bits of its downstream ports: `none` (the only value for stock QEMU), `standard` (as in
    /// commercial switches: all but egress control), `all`, or a value that [`AcsBits`] parses.
    #[serde(default, deserialize_with = "acs_caps")]
    pub acs: AcsBits,
    /// Downstream ports with other ACS capability bits, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub port_acs: BTreeMap<String, PortAcs>,
}

impl Switch {
    /// ACS capability bits of a downstream port.
    pub(crate) fn acs_of(&self, port: &str) -> AcsBits {
        self.port_acs.get(port).map_or(self.acs, |acs| acs.0)
    }
}

/// ACS capability bits, as [`Switch::acs`] spells them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PortAcs(#[serde(deserialize_with = "acs_caps")] pub AcsBits);

/// ACS capability bits of commercial switches and root ports.
pub const STANDARD_ACS: AcsBits = AcsBits::from_bits_retain(0x5f);

/// AMD Zen 3 (linux 7.2 drivers/pci/p2pdma.c: `cpu_supports_p2pdma()`).
const ROUTING_CPU_FAMILY: u8 = 25;

/// All ACS capability bits that the lab's ports support.
const ALL_ACS: AcsBits = AcsBits::from_bits_retain(0x7f);

fn standard_acs() -> AcsBits {
    STANDARD_ACS
}

fn acs_caps<'de, D: Deserializer<'de>>(deserializer: D) -> Result<AcsBits, D::Error> {
    let text = String::deserialize(deserializer)?;
    match text.as_str() {
        "standard" => Ok(STANDARD_ACS),
        "all" => Ok(ALL_ACS),
        text => text.parse().map_err(serde::de::Error::custom),
    }
}

/// A PCIe-to-PCI bridge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PciBridge {
    /// Name of the conventional bus below it.
    pub id: String,
    /// The port above.
    pub bus: String,
}

/// A disk image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Drive {
    /// Name that [`Device::drive`] refers to.
    pub id: String,
    /// Its size in MiB.
    pub size_mib: u32,
}

/// Memory shared with the harness.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SharedMemory {
    /// Name that a device's `memdev` property refers to.
    pub id: String,
    /// Its size in MiB.
    pub size_mib: u32,
}

/// Any device that QEMU can put in a slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// Its name.
    pub id: String,
    /// QEMU's name of the device model: `edu`, `nvme`, `igb`, …
    pub model: String,
    /// The bus it sits on.
    pub bus: String,
    /// Slot and function as QEMU spells them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub addr: Option<String>,
    /// The drive behind it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drive: Option<String>,
    /// QEMU properties of the model.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub properties: BTreeMap<String, Property>,
}

/// Value of a QEMU property.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Property {
    /// `on` or `off`.
    Switch(bool),
    /// A number.
    Number(i64),
    /// Any other value, in QEMU's syntax.
    Text(String),
}

impl std::fmt::Display for Property {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Switch(true) => out.write_str("on"),
            Self::Switch(false) => out.write_str("off"),
            Self::Number(number) => write!(out, "{number}"),
            Self::Text(text) => out.write_str(text),
        }
    }
}

fn root_bus() -> String {
    ROOT_BUS.to_owned()
}

impl Profile {
    /// Whether it needs the lab's own QEMU, whose switches route.
    #[must_use]
    pub fn needs_routing(&self) -> bool {
        let stock = |acs: AcsBits| acs == AcsBits::default() || acs == STANDARD_ACS;
        self.machine.trace
            || self.root_ports.iter().any(|port| !stock(port.acs))
            || self.switches.iter().any(|switch| {
                let mut ports = switch.downstream.iter();
                ports.any(|port| switch.acs_of(port) != AcsBits::default())
            })
            || self
                .devices
                .iter()
                .any(|device| device.model == "lab-endpoint")
    }

    /// Gives the downstream ports of all switches full ACS, and the machine a root complex that Linux knows to route
    /// between devices.
    pub fn give_acs(&mut self) {
        for switch in &mut self.switches {
            switch.acs = ALL_ACS;
        }
        self.machine.cpu_family = Some(ROUTING_CPU_FAMILY);
    }

    /// Reads `resources/lab/<name>.toml`.
    ///
    /// # Errors
    /// The file does not exist, or as [`Profile::parse`].
    pub fn named(name: &str) -> anyhow::Result<Self> {
        let path = crate::paths::resources().join(format!("{name}.toml"));
        Self::read(&path)
    }

    /// Reads a file.
    ///
    /// # Errors
    /// It cannot be read, or as [`Profile::parse`].
    pub fn read(path: &std::path::Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(&text).with_context(|| path.display().to_string())
    }

    /// Reads a profile and checks it.
    ///
    /// # Errors
    /// The TOML is malformed, has an unknown key, or describes a machine that cannot be built.
    pub fn parse(text: &str) -> Result<Self, ProfileError> {
        let profile: Self = toml::from_str(text)?;
        profile.check()?;
        Ok(profile)
    }
}
