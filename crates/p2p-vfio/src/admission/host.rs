//! What the host says of the devices that a VM shall have.

use std::fmt;
use std::ops::RangeInclusive;
use std::path::Path;

use iommu_group::{
    Address, AddressRange, Bar, Fabric, Function, Gpa, GroupId, GroupMember, Host, MemoryHole,
    Partition, Placement, PortType, Sbdf, Sysfs, SysfsError, Topology, Verdict,
};

use super::refusal::{Reason, Refusal};
use crate::context::Reach;
use crate::policy::{Consent, Identity, Policy, Ruling};

/// A host's functions, what its hardware does with requests between them, at one moment, and what its
/// operator wants of them.
pub struct HostView {
    sysfs: Sysfs,
    pub(super) topology: Topology,
    pub(super) policy: Policy,
}

impl HostView {
    /// Looks at the running host, whose devices may do what `policy` says.
    ///
    /// # Errors
    /// If sysfs cannot be read.
    pub fn read(policy: Policy) -> Result<Self, SysfsError> {
        let sysfs = Sysfs::default();
        let host = Host::read(Path::new("/proc"), &sysfs);
        let topology = Topology::scan(&sysfs, host)?;
        Ok(Self::new(sysfs, topology, policy))
    }

    /// Looks at a host that was read already: `topology` is what `sysfs` says.
    pub fn new(sysfs: Sysfs, topology: Topology, policy: Policy) -> Self {
        Self {
            sysfs,
            topology,
            policy,
        }
    }

    /// Windows of all bridges on the root buses: where bus addresses of devices are, including those that are not
    /// asked for yet.
    pub fn bridge_windows(&self) -> Vec<RangeInclusive<u64>> {
        let roots = self.topology.root_buses().iter();
        let bridges = roots.flat_map(|root| self.topology.on_root_bus(root));
        bridges.flat_map(windows).collect()
    }

    /// How requests between two functions go, and whether they may: between functions of one group.
    pub fn verdicts(&self) -> impl Fn(Sbdf, Sbdf) -> Verdict {
        let fabric = Fabric::found(&self.topology);
        let groups = Partition::found(&self.topology);
        let rules = iommu_group::Policy::default();
        move |initiator, target| fabric.verdict(&groups, &rules, initiator, target)
    }

    fn ruling(&self, sbdf: Sbdf) -> Ruling {
        let Some(function) = self.topology.get(sbdf) else {
            return Ruling::default();
        };
        let ids = function.ids();
        self.policy.ruling(&Identity {
            vendor: ids.vendor,
            device: ids.device,
            class: function.class(),
            integrated: function.port_type() == PortType::RcEndpoint
                || self.topology.upstream(sbdf).is_none(),
        })
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
    /// Bus addresses at which its requests do not get to the IOMMU: no guest memory may be there.
    pub holes: Vec<MemoryHole>,
    /// Windows of the bridges above it on the host, those of the topmost first: where its peers may come to be.
    pub bridges: Vec<Vec<RangeInclusive<u64>>>,
    /// What the policy says of it.
    pub ruling: Ruling,
    /// Set if the kernel would assign it although its interrupts were not isolated.
    pub unsafe_interrupts: Option<UnsafeInterrupts>,
    /// Whether its BARs are kept from its peers, as [`admit`](super::admit) decides for all members of a
    /// domain.
    pub hidden: bool,
    /// Where its BARs must be in guest-physical addresses, as `admit` decides.
    pub placement: Placement,
}

/// The kernel assigns devices whether or not their interrupts are isolated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnsafeInterrupts {
    /// The kernel modules whose parameter `allow_unsafe_interrupts` is set.
    pub modules: Vec<String>,
    /// Who accepts it.
    pub consent: Option<Consent>,
}

impl UnsafeInterrupts {
    /// Those of a host, and what its operator says of them; `None` if its kernel assigns no such devices.
    pub fn of(topology: &Topology, policy: &Policy) -> Option<Self> {
        let modules = topology.host().unsafe_interrupts.clone();
        (!modules.is_empty()).then(|| Self {
            modules,
            consent: policy.unsafe_interrupts().cloned(),
        })
    }
}

impl fmt::Display for UnsafeInterrupts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "interrupts may not be isolated, so a device could raise any interrupt of the host: \
             allow_unsafe_interrupts of {} is set",
            self.modules.join(" and ")
        )?;
        match &self.consent {
            Some(consent) => write!(f, "; {consent}"),
            None => Ok(()),
        }
    }
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
    /// What it may reach once it is admitted: its peers if it is in a domain.
    pub fn reach(&self) -> Reach {
        match self.domain {
            Some(_) => Reach::Peers,
            None => Reach::GuestMemory,
        }
    }

    /// Reads group and neighbours of the function at `path`, which may be any alias of it.
    ///
    /// # Errors
    /// If the path is not a PCI function of this host or has no IOMMU group.
    pub fn read(
        host: &HostView,
        path: &Path,
        domain: Option<DomainName>,
    ) -> Result<Self, SysfsError> {
        let HostView {
            sysfs, topology, ..
        } = host;
        let sbdf = sysfs.resolve(path)?;
        let group = sysfs.group_of(sbdf)?;
        Ok(Self {
            sbdf,
            domain,
            group,
            members: sysfs.group_members(group)?,
            bus_addresses: bus_addresses(topology, sbdf),
            holes: Fabric::found(topology).memory_holes(sbdf),
            bridges: bridges(topology, sbdf),
            ruling: host.ruling(sbdf),
            unsafe_interrupts: UnsafeInterrupts::of(topology, &host.policy),
            hidden: false,
            placement: Placement::Anywhere,
        })
    }

    /// Whether it reaches guest memory that is there already; memory that comes later is laid out for it.
    ///
    /// # Errors
    /// The [`Refusal`] names the first memory that it does not reach, and the port that is in the way.
    pub fn reaches_memory(
        &self,
        memory: impl IntoIterator<Item = AddressRange<Gpa>>,
    ) -> Result<(), Refusal> {
        let unreachable = memory.into_iter().find_map(|memory| {
            let last = memory.end().value().checked_sub(1)?;
            let hole = MemoryHole::worst(&self.holes, &(memory.start().value()..=last))?;
            Some(Reason::Memory {
                sbdf: self.sbdf,
                memory,
                hole: hole.clone(),
            })
        });
        match unreachable {
            None => Ok(()),
            Some(reason) => Err(Refusal {
                reasons: vec![reason],
            }),
        }
    }

    pub(super) fn driver(&self) -> Option<&str> {
        let own = self.members.iter().find(|m| m.sbdf == Some(self.sbdf));
        own.and_then(|m| m.driver.as_deref())
    }
}

fn bridges(topology: &Topology, sbdf: Sbdf) -> Vec<Vec<RangeInclusive<u64>>> {
    let mut bridges: Vec<_> = topology.ancestors(sbdf).map(windows).collect();
    bridges.reverse();
    bridges
}

fn windows(bridge: &Function) -> Vec<RangeInclusive<u64>> {
    let windows = bridge.windows().into_iter();
    windows.flat_map(|w| w.memory_windows().cloned()).collect()
}

fn bus_addresses(topology: &Topology, sbdf: Sbdf) -> Vec<(u8, u64)> {
    let bars = topology.get(sbdf).map(|function| topology.bars(function));
    let memory = bars.into_iter().flatten().filter(Bar::is_memory);
    memory
        .filter_map(|bar| Some((bar.index, bar.bus_address?.value())))
        .collect()
}
