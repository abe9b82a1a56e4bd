//! Types of requests and answers, with cloud-hypervisor's names.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::VmConfig;

/// Answer to `vmm.ping`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct VmmPing {
    /// Version of the build.
    pub build_version: String,
    /// Version of the release.
    pub version: String,
    /// Process ID.
    pub pid: i64,
    /// Optional features.
    pub features: Vec<String>,
}

/// State of the VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum VmState {
    /// Configured, or shut down.
    Created,
    /// The vCPUs run.
    Running,
    /// The vCPUs are stopped.
    Paused,
}

/// Answer to `vm.info`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct VmInfo {
    /// Current configuration, with the devices that were added and removed.
    pub config: VmConfig,
    /// Current state.
    pub state: VmState,
    /// Guest memory, in bytes.
    pub memory_actual_size: u64,
    /// The devices in the guest; none while the VM does not run.
    pub device_tree: Option<DeviceTree>,
}

/// The devices in a guest, by name.
pub type DeviceTree = BTreeMap<String, DeviceNode>;

/// A device in a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct DeviceNode {
    /// Name.
    pub id: String,
    /// Resources in the guest.
    pub resources: Vec<Resource>,
    /// The parent device.
    pub parent: Option<String>,
    /// The child devices.
    pub children: Vec<String>,
    /// Address in the guest, `0000:02:00.0`.
    pub pci_bdf: Option<String>,
}

/// A resource of a device in the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Resource {
    /// A base address register.
    PciBar {
        /// Number of the BAR, 0 to 5.
        index: u8,
        /// Current guest-physical address.
        base: u64,
        /// Size in bytes.
        size: u64,
        /// Address space of the BAR.
        type_: BarKind,
        /// Whether reads have no side effects.
        prefetchable: bool,
    },
}

/// Address space of a BAR.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum BarKind {
    /// I/O ports.
    Io,
    /// Memory, 32-bit addresses.
    Mmio32,
    /// Memory, 64-bit addresses.
    Mmio64,
}

/// Answer to `vm.add-device` while the VM runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PciDevice {
    /// Name.
    pub id: String,
    /// Address in the guest, `0000:02:00.0`.
    pub bdf: String,
}

/// Body of `vm.p2p-windows`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct P2pWindows {
    /// Name of the device.
    pub id: String,
    /// Whether the peers of the device may reach it.
    pub open: bool,
}

/// Body of `vm.remove-device`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct RemoveDevice {
    /// Name of the device.
    pub id: String,
    /// Time that the guest has to release the device, in milliseconds; 30 seconds by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// Whether to remove the device after that time even if the guest has not released it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub force: bool,
}
