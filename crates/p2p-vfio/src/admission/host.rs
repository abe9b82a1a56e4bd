//! What the host says of the devices that a VM shall have.

use std::ops::RangeInclusive;
use std::path::Path;

use iommu_group::{
    Bar, Fabric, GroupId, GroupMember, Host, Partition, Policy, Sbdf, Sysfs, SysfsError, Topology,
    Verdict,
};

/// A host's functions and what its hardware does with requests between them, at one moment.
pub struct HostView {
    sysfs: Sysfs,
    topology: Topology,
}

impl HostView {
    /// Looks at the running host.
    ///
    /// # Errors
    /// If sysfs cannot be read.
    pub fn read() -> Result<Self, SysfsError> {
        let sysfs = Sysfs::default();
        let host = Host::read(Path::new("/proc"), &sysfs);
        let topology = Topology::scan(&sysfs, host)?;
        Ok(Self { sysfs, topology })
    }

    /// How requests between two functions go, and whether the default policy lets them.
    pub fn verdicts(&self) -> impl Fn(Sbdf, Sbdf) -> Verdict {
        let fabric = Fabric::found(&self.topology);
        let groups = Partition::found(&self.topology);
        move |initiator, target| fabric.verdict(&groups, &Policy::default(), initiator, target)
    }
}

/// A function that somebody wants in a VM, with what the host says of it.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Its address.
    pub sbdf: Sbdf,
    /// The P2P domain that it was asked to join; `None` if peer-to-peer was not asked for.
    pub domain: Option<DomainName>,
    /// Its IOMMU group.
    pub group: GroupId,
    /// Everything in that group, itself included.
    pub members: Vec<GroupMember>,
    /// Bus addresses of its memory BARs, by number.
    pub bus_addresses: Vec<(u8, u64)>,
    /// Bus addresses that a switch above it takes for others before the IOMMU sees them: no guest memory may be there.
    pub holes: Vec<RangeInclusive<u64>>,
}

/// Name of a P2P domain of a VM.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DomainName {
    /// The domain of those that name none.
    #[default]
    Unnamed,
    /// A name that the operator chose.
    Named(String),
}

impl Candidate {
    /// Reads group and neighbours of the function at `path`, which may be any alias of it.
    ///
    /// # Errors
    /// If the path is not a PCI function of this host or has no IOMMU group.
    pub fn read(
        host: &HostView,
        path: &Path,
        domain: Option<DomainName>,
    ) -> Result<Self, SysfsError> {
        let HostView { sysfs, topology } = host;
        let sbdf = sysfs.resolve(path)?;
        let group = sysfs.group_of(sbdf)?;
        Ok(Self {
            sbdf,
            domain,
            group,
            members: sysfs.group_members(group)?,
            bus_addresses: bus_addresses(topology, sbdf),
            holes: Fabric::found(topology)
                .memory_holes(sbdf)
                .into_iter()
                .map(|hole| hole.range)
                .collect(),
        })
    }

    pub(super) fn driver(&self) -> Option<&str> {
        let own = self.members.iter().find(|m| m.sbdf == Some(self.sbdf));
        own.and_then(|m| m.driver.as_deref())
    }
}

fn bus_addresses(topology: &Topology, sbdf: Sbdf) -> Vec<(u8, u64)> {
    let bars = topology.get(sbdf).map(|function| topology.bars(function));
    let memory = bars.into_iter().flatten().filter(Bar::is_memory);
    memory
        .filter_map(|bar| Some((bar.index, bar.bus_address?)))
        .collect()
}
