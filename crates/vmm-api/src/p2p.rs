//! Answer to `vm.p2p`: domains, routes and exposures. cloud-hypervisor has no such call.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Warning for a guest in which P2PDMA between devices that are not peers fails silently.
pub const UNSHARED_TRANSFERS: &str = "this guest has an AMD Zen CPU, on which Linux accepts P2PDMA between any two devices:  \
     between devices that are not peers the IOMMU stops the requests, and data is silently wrong";

/// Answer to `vm.p2p`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct P2pInfo {
    /// The P2P domains. Only members of one domain reach each other.
    pub domains: Vec<P2pDomain>,
    /// Names of the devices that reach guest memory only.
    pub others: Vec<String>,
    /// The routes between each two devices with P2P, in both directions.
    pub routes: Vec<P2pRoute>,
    /// Functions that are reachable without the IOMMU because of the VM's devices.
    #[serde(default)]
    pub exposures: Vec<P2pExposure>,
    /// The kernel interface of the assigned devices; none before the first device and while the VM does not run.
    pub backend: Option<P2pBackend>,
    /// The guest's memory; empty while the VM does not run.
    #[serde(default)]
    pub memory: Vec<P2pMemory>,
    /// Whether transfers between devices that are not peers fail silently: there are two such devices, and the guest
    /// has an AMD Zen CPU, on which Linux accepts P2PDMA between any two devices. The IOMMU stops the requests; writes
    /// are lost and reads return garbage. On other CPUs, Linux in the guest refuses such transfers. False while the VM
    /// does not run.
    #[serde(default)]
    pub unshared_transfers_fail_silently: bool,
}

/// A range of the guest's memory. Every device of the VM reaches it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct P2pMemory {
    /// Guest-physical address.
    pub base: u64,
    /// Size in bytes.
    pub size: u64,
}

/// How the devices of a VM are assigned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct P2pBackend {
    /// The kernel's interface.
    pub interface: P2pInterface,
    /// Why this interface was chosen.
    pub reason: String,
}

/// Kernel interface for IOMMU contexts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum P2pInterface {
    /// VFIO containers with the type1 driver.
    Type1,
    /// iommufd.
    Iommufd,
}

impl fmt::Display for P2pInterface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Type1 => "type1",
            Self::Iommufd => "iommufd",
        })
    }
}

/// A P2P domain of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct P2pDomain {
    /// Name; none for the unnamed domain.
    pub name: Option<String>,
    /// Its devices.
    pub members: Vec<P2pMember>,
}

/// A device in a P2P domain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct P2pMember {
    /// Name.
    pub id: String,
    /// Address on the host, `0000:03:00.0`.
    pub host: String,
    /// Its IOMMU group on the host.
    pub group: u32,
    /// Address in the guest; none while the VM does not run.
    pub bdf: Option<String>,
    /// The ranges that the other members reach now.
    pub windows: Vec<P2pWindow>,
}

/// A range of a BAR that peers reach.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct P2pWindow {
    /// The BAR's number, 0 to 5.
    pub bar: u8,
    /// Address in the domain's I/O address space, which is the guest-physical one.
    pub base: u64,
    /// Size in bytes.
    pub size: u64,
}

/// The route between two devices.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct P2pRoute {
    /// The device that starts requests.
    pub from: String,
    /// The device that has the memory.
    pub to: String,
    /// Whether hardware and policy permit it.
    pub verdict: P2pVerdict,
    /// The route of requests, if they are permitted.
    pub route: Option<String>,
    /// The reasons, if requests are not permitted.
    pub reasons: Vec<String>,
}

/// A function that devices reach without the IOMMU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct P2pExposure {
    /// The VM's device that reaches the function, or that is the function.
    pub id: String,
    /// The function on the host.
    pub function: String,
    /// The devices on the host that reach it.
    pub to: Vec<String>,
    /// Where requests bypass the IOMMU: ports that do not redirect them, or the devices themselves.
    pub through: Vec<String>,
    /// Whether the path is certain or could not be read; otherwise it depends on the root complex or on a device.
    pub certain: bool,
    /// Who accepted the exposure; none if nobody did.
    pub accepted: Option<String>,
}

/// Whether a device may reach another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum P2pVerdict {
    /// Permitted and mapped.
    Allowed,
    /// Not permitted.
    Denied,
    /// Permitted, but the devices are in different domains.
    Apart,
}
