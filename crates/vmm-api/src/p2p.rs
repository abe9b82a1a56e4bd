//! Who may reach whom: what `vm.p2p` answers. cloud-hypervisor has no such call.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What happens to P2PDMA between devices that are not peers, in a guest that does not refuse it.
pub const UNSHARED_TRANSFERS: &str = "Linux on an AMD Zen CPU, as this guest has, accepts P2PDMA between any two devices: \
     between those that are not peers the IOMMU stops the requests, and data is silently wrong";

/// Answer to `vm.p2p`: who may reach whom, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct P2pInfo {
    /// The domains: members of one reach each other, and nobody else does.
    pub domains: Vec<P2pDomain>,
    /// Names of the devices that reach guest memory only.
    pub others: Vec<String>,
    /// What is between each two devices with P2P, in each direction.
    pub routes: Vec<P2pRoute>,
    /// Functions that are reachable without the IOMMU because of the VM's devices.
    #[serde(default)]
    pub exposures: Vec<P2pExposure>,
    /// What the devices are assigned by; none while there is no guest, and before its first device.
    pub backend: Option<P2pBackend>,
    /// Where the guest's memory is; empty while there is no guest.
    #[serde(default)]
    pub memory: Vec<P2pMemory>,
    /// Whether transfers between devices that are not peers fail silently: some two are not, and the guest has an AMD Zen
    /// CPU, on which Linux accepts P2PDMA between any two devices. The IOMMU stops the requests; writes are lost and reads
    /// return garbage. On other CPUs, Linux in the guest refuses such transfers. False while there is no guest.
    #[serde(default)]
    pub unshared_transfers_fail_silently: bool,
}

/// A part of the guest's memory: every device of the VM reaches it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct P2pMemory {
    /// Where it is, guest-physical.
    pub base: u64,
    /// How long it is, in bytes.
    pub size: u64,
}

/// What the devices of a VM are assigned by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct P2pBackend {
    /// The kernel's interface.
    pub interface: P2pInterface,
    /// Why it is this one, in words.
    pub reason: String,
}

/// An interface of the kernel to IOMMU contexts.
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
    /// Its name; none is that of the devices that name none.
    pub name: Option<String>,
    /// Its devices.
    pub members: Vec<P2pMember>,
}

/// A device in a P2P domain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct P2pMember {
    /// Its name.
    pub id: String,
    /// Where it is on the host, `0000:03:00.0`.
    pub host: String,
    /// Its IOMMU group on the host.
    pub group: u32,
    /// Where it is in the guest; none while there is no guest.
    pub bdf: Option<String>,
    /// What the others reach now.
    pub windows: Vec<P2pWindow>,
}

/// A part of a BAR that peers reach.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct P2pWindow {
    /// The BAR's number, 0 to 5.
    pub bar: u8,
    /// Where it is in the domain's I/O addresses, which are guest-physical.
    pub base: u64,
    /// How long it is, in bytes.
    pub size: u64,
}

/// What is between two devices.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct P2pRoute {
    /// Who starts requests.
    pub from: String,
    /// Who has the memory.
    pub to: String,
    /// Whether hardware and policy let it.
    pub verdict: P2pVerdict,
    /// How requests go, if they may.
    pub route: Option<String>,
    /// Why they may not.
    pub reasons: Vec<String>,
}

/// A function that devices reach without the IOMMU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct P2pExposure {
    /// The VM's device that reaches it, or is it.
    pub id: String,
    /// The function on the host.
    pub function: String,
    /// The devices on the host that reach it.
    pub to: Vec<String>,
    /// Where their requests go straight: ports that do not redirect, or the devices themselves.
    pub through: Vec<String>,
    /// Whether that is certain, or could not be read; otherwise it is up to the root complex or to a device.
    pub certain: bool,
    /// Who accepts it, in words; none if nobody does.
    pub accepted: Option<String>,
}

/// Whether one device may reach another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum P2pVerdict {
    /// It may, and does.
    Allowed,
    /// It may not, whatever is asked for.
    Denied,
    /// It might, but the two are in different domains.
    Apart,
}
