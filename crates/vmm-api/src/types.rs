//! What requests and answers consist of, named as cloud-hypervisor names it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::VmConfig;

/// Answer to `vmm.ping`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct VmmPing {
    /// Which build it is.
    pub build_version: String,
    /// Which release it is.
    pub version: String,
    /// Its process.
    pub pid: i64,
    /// What it can do beyond the usual.
    pub features: Vec<String>,
}

/// Where the VM is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum VmState {
    /// Described, or switched off.
    Created,
    /// Its vCPUs run.
    Running,
    /// Its vCPUs are stopped.
    Paused,
}

/// Answer to `vm.info`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct VmInfo {
    /// What was asked for, and came and went since.
    pub config: VmConfig,
    /// Where it is in its life.
    pub state: VmState,
    /// Guest memory, in bytes.
    pub memory_actual_size: u64,
    /// The devices in the guest; none while there is no guest.
    pub device_tree: Option<DeviceTree>,
}

/// The devices in a guest, by name.
pub type DeviceTree = BTreeMap<String, DeviceNode>;

/// A device in a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct DeviceNode {
    /// Its name.
    pub id: String,
    /// What it occupies in the guest.
    pub resources: Vec<Resource>,
    /// The device it belongs to.
    pub parent: Option<String>,
    /// The devices that belong to it.
    pub children: Vec<String>,
    /// Where it is in the guest, `0000:02:00.0`.
    pub pci_bdf: Option<String>,
}

/// What a device occupies in the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Resource {
    /// A base address register.
    PciBar {
        /// Its number, 0 to 5.
        index: u8,
        /// Where it is now, guest-physical.
        base: u64,
        /// How long it is, in bytes.
        size: u64,
        /// How it is addressed.
        type_: BarKind,
        /// Whether reading it has no effect.
        prefetchable: bool,
    },
}

/// How a BAR is addressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum BarKind {
    /// I/O ports.
    Io,
    /// Memory below 4 GiB.
    Mmio32,
    /// Memory anywhere.
    Mmio64,
}

/// Answer to `vm.add-device` of a VM that runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PciDevice {
    /// Its name.
    pub id: String,
    /// Where it is in the guest, `0000:02:00.0`.
    pub bdf: String,
}

/// Body of `vm.p2p-windows`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct P2pWindows {
    /// The device's name.
    pub id: String,
    /// Whether its peers may reach it.
    pub open: bool,
}

/// Body of `vm.remove-device`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct RemoveDevice {
    /// The device's name.
    pub id: String,
    /// When to give up waiting for the guest, in milliseconds; 30 seconds unless said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// Whether to take the device away when the time is up, ready or not.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub force: bool,
}
