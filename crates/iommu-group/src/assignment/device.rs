//! A device that is requested for a VM.

use std::ops::RangeInclusive;
use std::path::Path;

use super::host::windows;
use super::{HostSnapshot, UnsafeInterrupts};
use crate::policy::PolicyMatch;
use crate::{
    Address, Bar, GroupId, GroupMember, MemoryHole, Placement, RoutingModel, Sbdf, Sysfs,
    SysfsError, Topology,
};

/// A function that is requested for a VM, with the facts about it that the check needs.
#[derive(Clone, Debug)]
pub struct DeviceInfo {
    /// Address of the function.
    pub sbdf: Sbdf,
    /// The requested P2P domain; `None` without peer-to-peer.
    pub domain: Option<DomainName>,
    /// Its IOMMU group.
    pub group: GroupId,
    /// All members of the group, including the function itself.
    pub members: Vec<GroupMember>,
    /// Bus addresses of its memory BARs, with the number of each BAR.
    pub bus_addresses: Vec<(u8, u64)>,
    /// Bus addresses at which its requests do not reach the IOMMU. Guest memory must not be there.
    pub holes: Vec<MemoryHole>,
    /// Windows of the bridges above it on the host, the topmost bridge first. BARs of its peers may be placed there.
    pub bridges: Vec<Vec<RangeInclusive<u64>>>,
    /// The policy's rule for the device.
    pub policy: PolicyMatch,
    /// Set if the kernel would assign the device even if its interrupts were not isolated.
    pub unsafe_interrupts: Option<UnsafeInterrupts>,
    /// Whether its BARs are hidden from its peers. Set by [`check_assignment`](super::check_assignment).
    pub hidden: bool,
    /// Required position of its BARs in guest-physical addresses. Set by [`check_assignment`](super::check_assignment).
    pub placement: Placement,
}

/// Name of a P2P domain of a VM.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DomainName {
    /// The domain of devices that do not name one.
    #[default]
    Unnamed,
    /// A name chosen by the operator.
    Named(String),
}

impl DomainName {
    /// The domain requested by the options `p2p` and `p2p_domain`; `None` without peer-to-peer.
    #[must_use]
    pub fn requested(p2p: bool, name: Option<&str>) -> Option<Self> {
        let named = |name: &str| Self::Named(name.to_owned());
        p2p.then(|| name.map_or(Self::Unnamed, named))
    }
}

/// What an IOMMU context maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContextKind {
    /// Guest memory only.
    Isolated,
    /// Guest memory and the BARs of the members: the context of a P2P domain.
    P2p,
}

impl DeviceInfo {
    /// Reads the facts about the function at `path`. The path may be any alias of the function's directory. `host` was
    /// read from `sysfs`.
    ///
    /// # Errors
    /// If the path is not a PCI function of this host or has no IOMMU group.
    pub fn read(
        host: &HostSnapshot,
        sysfs: &Sysfs,
        path: &Path,
        domain: Option<DomainName>,
    ) -> Result<Self, SysfsError> {
        let topology = host.topology();
        let sbdf = sysfs.resolve(path)?;
        let group = sysfs.group_of(sbdf)?;
        Ok(Self {
            sbdf,
            domain,
            group,
            members: sysfs.group_members(group)?,
            bus_addresses: bus_addresses(topology, sbdf),
            holes: RoutingModel::found(topology).memory_holes(sbdf),
            bridges: bridges(topology, sbdf),
            policy: host.policy_match(sbdf),
            unsafe_interrupts: UnsafeInterrupts::of(topology, host.policy()),
            hidden: false,
            placement: Placement::Anywhere,
        })
    }

    /// The kind of context that the device needs: that of its domain, if it has one.
    #[must_use]
    pub fn context_kind(&self) -> ContextKind {
        match self.domain {
            Some(_) => ContextKind::P2p,
            None => ContextKind::Isolated,
        }
    }

    /// The device as a member of its group.
    pub(super) fn member(&self) -> Option<&GroupMember> {
        self.members.iter().find(|m| m.sbdf == Some(self.sbdf))
    }
}

fn bridges(topology: &Topology, sbdf: Sbdf) -> Vec<Vec<RangeInclusive<u64>>> {
    let mut bridges: Vec<_> = topology.ancestors(sbdf).map(windows).collect();
    bridges.reverse();
    bridges
}

fn bus_addresses(topology: &Topology, sbdf: Sbdf) -> Vec<(u8, u64)> {
    let bars = topology.get(sbdf).map(|function| topology.bars(function));
    let memory = bars.into_iter().flatten().filter(Bar::is_memory);
    memory
        .filter_map(|bar| Some((bar.index, bar.bus_address?.value())))
        .collect()
}
