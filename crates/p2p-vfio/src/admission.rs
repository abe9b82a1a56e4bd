//! Which devices a VM may have, and which of them may talk to each other.
//!
//! Reading the host ([`HostView`], [`Candidate::read`]) and deciding ([`admit`]) are apart; nothing is opened or
//! changed by either.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::RangeInclusive;
use std::path::Path;

use iommu_group::{
    Bar, Denial, Fabric, GroupId, GroupMember, Host, Partition, Placement, Policy, Sbdf, Sysfs,
    SysfsError, Topology, Verdict,
};
use thiserror::Error;

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

    fn driver(&self) -> Option<&str> {
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

/// The devices of one P2P domain.
#[derive(Debug)]
pub struct AdmittedDomain {
    /// Its members, all of one group.
    pub members: Vec<Candidate>,
    /// Where the members' BARs must be in guest-physical addresses: at their bus addresses if any request between them
    /// goes straight across a switch.
    pub placement: Placement,
}

/// The devices of one VM, sorted into IOMMU contexts.
#[derive(Debug)]
pub struct Admitted {
    /// The devices with peer-to-peer, domain by domain: those of a domain share a context of their own.
    pub domains: Vec<AdmittedDomain>,
    /// The others: they share a context in which no BAR is mapped.
    pub others: Vec<Candidate>,
}

/// Why a set of devices may not be given to a VM as asked. Nothing was changed.
#[derive(Debug, Error)]
#[error("{}", Lines(reasons))]
pub struct Refusal {
    /// Every reason, most fundamental first; never empty.
    pub reasons: Vec<Reason>,
}

struct Lines<'a>(&'a [Reason]);

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, reason) in self.0.iter().enumerate() {
            if n > 0 {
                writeln!(f)?;
            }
            write!(f, "{reason}")?;
        }
        Ok(())
    }
}

/// One reason of a [`Refusal`]; its text ends with what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Reason {
    /// The same function twice, whatever the paths were.
    #[error("{0} is given twice\n       name every device once")]
    Twice(Sbdf),
    /// Not bound to vfio-pci or one of its variants.
    #[error(
        "{sbdf} is not bound to vfio-pci: {}\n       \
         echo vfio-pci > /sys/bus/pci/devices/{sbdf}/driver_override, unbind it from its driver, then\n       \
         echo {sbdf} > /sys/bus/pci/drivers_probe",
        Driver(driver)
    )]
    NotBound {
        /// The device asked for.
        sbdf: Sbdf,
        /// What drives it.
        driver: Option<String>,
    },
    /// A neighbour in the group is in the host's hands.
    #[error(
        "{sbdf} cannot leave the host alone: {neighbour} in its IOMMU group {group} is driven by {driver}\n       \
         bind {neighbour} to vfio-pci as well, or unbind it from {driver}"
    )]
    Neighbour {
        /// The device asked for.
        sbdf: Sbdf,
        /// The group of both.
        group: GroupId,
        /// Who shares it.
        neighbour: String,
        /// What drives the neighbour.
        driver: String,
    },
    /// Peer-to-peer across groups.
    #[error(
        "{} and {} cannot share P2P: IOMMU group {} and group {}\n       \
         p2pctl explain {} {}   says why\n       \
         p2pctl plan --join {} {}   says how they would get into one\n       \
         or leave p2p=on out, or give them p2p_domain= names of their own, to keep them apart",
        a.0, b.0, a.1, b.1, a.0, b.0, a.0, b.0
    )]
    TwoGroups {
        /// The first device and its group.
        a: (Sbdf, GroupId),
        /// The second device and its group.
        b: (Sbdf, GroupId),
    },
    /// The hardware does not carry requests between peers, or policy forbids it.
    #[error(
        "{from} cannot reach {to}: {}\n       \
         p2pctl explain {from} {to}   says more\n       \
         leave p2p=on out, or give them p2p_domain= names of their own",
        Denials(reasons)
    )]
    Route {
        /// The device that would send.
        from: Sbdf,
        /// The device that would be reached.
        to: Sbdf,
        /// Why not.
        reasons: Vec<Denial>,
    },
    /// One group cannot be in two IOMMU contexts.
    #[error(
        "{a} and {b} cannot be kept apart: both are in IOMMU group {group}, which the IOMMU translates as one\n       \
         give p2p=on with the same p2p_domain to both, or to neither"
    )]
    SplitGroup {
        /// A device with `p2p=on`.
        a: Sbdf,
        /// A device without, or of another domain.
        b: Sbdf,
        /// The group of both.
        group: GroupId,
    },
}

struct Denials<'a>(&'a [Denial]);

impl fmt::Display for Denials<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, denial) in self.0.iter().enumerate() {
            if n > 0 {
                f.write_str("; ")?;
            }
            write!(f, "{denial}")?;
        }
        Ok(())
    }
}

struct Driver<'a>(&'a Option<String>);

impl fmt::Display for Driver<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(name) => write!(f, "its driver is {name}"),
            None => f.write_str("no driver is bound"),
        }
    }
}

/// Whether a neighbour with this driver leaves the group assignable: drivers that manage DMA
/// ownership themselves (linux: `driver_managed_dma` in `struct pci_driver`).
fn leaves_group_viable(driver: &str) -> bool {
    is_vfio(driver) || matches!(driver, "pcieport" | "pci-stub")
}

/// vfio-pci and the variant drivers that use its core, all of which are named after VFIO
/// (`vfio-pci`, `mlx5_vfio_pci`, `nvgrace_gpu_vfio_pci`, `virtio_vfio_pci`, …).
fn is_vfio(driver: &str) -> bool {
    driver == "vfio-pci" || driver.ends_with("vfio_pci") || driver.ends_with("vfio-pci")
}

/// Decides which devices share which IOMMU context, or refuses with every reason there is.
///
/// The rule: the devices of a P2P domain must all be in one IOMMU group, the hardware must carry requests between each
/// two of them (`verdict` of initiator and target), and a group is translated as a whole, so a device of that group can
/// neither stay out nor be in another domain.
///
/// # Errors
/// The [`Refusal`] names the devices and groups that stand in the way.
pub fn admit(
    candidates: Vec<Candidate>,
    verdict: impl Fn(Sbdf, Sbdf) -> Verdict,
) -> Result<Admitted, Refusal> {
    let mut reasons = Vec::new();
    let mut seen = BTreeSet::new();
    for candidate in &candidates {
        if !seen.insert(candidate.sbdf) {
            reasons.push(Reason::Twice(candidate.sbdf));
            continue;
        }
        reasons.extend(unassignable(candidate));
    }
    for (at, a) in candidates.iter().enumerate() {
        let later = candidates.iter().skip(at + 1);
        reasons.extend(later.filter_map(|b| incompatible(a, b)));
    }
    let mut domains: BTreeMap<DomainName, Vec<Candidate>> = BTreeMap::new();
    let mut others = Vec::new();
    for candidate in candidates {
        match &candidate.domain {
            Some(name) => domains.entry(name.clone()).or_default().push(candidate),
            None => others.push(candidate),
        }
    }
    // Routes say nothing new between devices that are apart anyway.
    let routes = reasons.is_empty();
    let mut admitted = Vec::new();
    for members in domains.into_values() {
        let mut placement = Placement::Anywhere;
        for (from, to) in pairs(&members).filter(|_| routes) {
            match verdict(from, to) {
                Verdict::Allowed {
                    placement: Placement::AtBusAddress,
                    ..
                } => placement = Placement::AtBusAddress,
                Verdict::Allowed { .. } => {}
                Verdict::Denied { reasons: denials } => reasons.push(Reason::Route {
                    from,
                    to,
                    reasons: denials,
                }),
            }
        }
        admitted.push(AdmittedDomain { members, placement });
    }
    if !reasons.is_empty() {
        return Err(Refusal { reasons });
    }
    Ok(Admitted {
        domains: admitted,
        others,
    })
}

/// Every ordered pair of different members.
fn pairs(members: &[Candidate]) -> impl Iterator<Item = (Sbdf, Sbdf)> {
    let all = members.iter().map(|member| member.sbdf);
    all.clone()
        .flat_map(move |from| all.clone().map(move |to| (from, to)))
        .filter(|(from, to)| from != to)
}

/// Why two devices cannot be what was asked of both.
fn incompatible(a: &Candidate, b: &Candidate) -> Option<Reason> {
    if a.sbdf == b.sbdf || a.domain.is_none() && b.domain.is_none() {
        return None;
    }
    match (a.domain == b.domain, a.group == b.group) {
        (true, true) | (false, false) => None,
        (true, false) => Some(Reason::TwoGroups {
            a: (a.sbdf, a.group),
            b: (b.sbdf, b.group),
        }),
        (false, true) => Some(Reason::SplitGroup {
            a: a.sbdf,
            b: b.sbdf,
            group: a.group,
        }),
    }
}

fn unassignable(candidate: &Candidate) -> Vec<Reason> {
    if !candidate.driver().is_some_and(is_vfio) {
        return vec![Reason::NotBound {
            sbdf: candidate.sbdf,
            driver: candidate.driver().map(str::to_owned),
        }];
    }
    let mut reasons = Vec::new();
    for member in &candidate.members {
        if let Some(driver) = &member.driver
            && !leaves_group_viable(driver)
        {
            reasons.push(Reason::Neighbour {
                sbdf: candidate.sbdf,
                group: candidate.group,
                neighbour: member.name.clone(),
                driver: driver.clone(),
            });
        }
    }
    reasons
}

#[cfg(test)]
mod tests {
    use iommu_group::Route;

    use super::*;

    fn sbdf(text: &str) -> Sbdf {
        text.parse().unwrap()
    }

    fn member(text: &str, driver: Option<&str>) -> GroupMember {
        GroupMember {
            sbdf: Some(sbdf(text)),
            name: sbdf(text).to_string(),
            driver: driver.map(str::to_owned),
        }
    }

    fn candidate(text: &str, group: u32, p2p: bool) -> Candidate {
        Candidate {
            sbdf: sbdf(text),
            domain: p2p.then(DomainName::default),
            group: GroupId(group),
            members: vec![member(text, Some("vfio-pci"))],
            bus_addresses: Vec::new(),
            holes: Vec::new(),
        }
    }

    fn through_host_bridge(_: Sbdf, _: Sbdf) -> Verdict {
        Verdict::Allowed {
            route: Route::HostBridge,
            placement: Placement::Anywhere,
        }
    }

    fn judge(candidates: Vec<Candidate>) -> Result<Admitted, Refusal> {
        admit(candidates, through_host_bridge)
    }

    fn reasons(candidates: Vec<Candidate>) -> Vec<Reason> {
        judge(candidates).unwrap_err().reasons
    }

    #[test]
    fn invariant_1_what_the_hardware_does_not_carry_is_refused() {
        let pair = vec![candidate("03:00.0", 6, true), candidate("04:00.0", 6, true)];
        let one_way = |from: Sbdf, to: Sbdf| {
            if from < to {
                through_host_bridge(from, to)
            } else {
                Verdict::Denied {
                    reasons: vec![Denial::NoMemory { function: to }],
                }
            }
        };
        let refusal = admit(pair, one_way).unwrap_err();
        assert_eq!(refusal.reasons.len(), 1);
        let text = refusal.to_string();
        assert!(
            text.contains("0000:04:00.0 cannot reach 0000:03:00.0"),
            "{text}"
        );
        assert!(text.contains("no memory BAR"), "{text}");
    }

    #[test]
    fn one_direct_route_puts_all_members_at_their_bus_addresses() {
        let pair = vec![candidate("03:00.0", 6, true), candidate("04:00.0", 6, true)];
        let verdict = |from: Sbdf, to: Sbdf| {
            if from < to {
                through_host_bridge(from, to)
            } else {
                Verdict::Allowed {
                    route: Route::SwitchLocal,
                    placement: Placement::AtBusAddress,
                }
            }
        };
        let admitted = admit(pair, verdict).unwrap();
        assert_eq!(admitted.domains[0].placement, Placement::AtBusAddress);
    }

    #[test]
    fn peers_of_one_group_share_a_domain() {
        let a = candidate("03:00.0", 6, true);
        let b = candidate("04:00.0", 6, true);
        let c = candidate("05:00.0", 7, false);
        let admitted = judge(vec![a, b, c]).unwrap();
        assert_eq!(admitted.domains.len(), 1);
        assert_eq!(admitted.domains[0].members.len(), 2);
        assert_eq!(admitted.others.len(), 1);
    }

    #[test]
    fn invariant_1_peers_of_two_groups_are_refused_naming_both() {
        let a = candidate("03:00.0", 6, true);
        let b = candidate("04:00.0", 7, true);
        let refusal = judge(vec![a, b]).unwrap_err();
        let text = refusal.to_string();
        for part in ["0000:03:00.0", "0000:04:00.0", "group 6", "group 7"] {
            assert!(text.contains(part), "{part} is not named in: {text}");
        }
    }

    #[test]
    fn invariant_7_without_p2p_nothing_is_in_a_domain() {
        let a = candidate("03:00.0", 6, false);
        let b = candidate("04:00.0", 6, false);
        let admitted = judge(vec![a, b]).unwrap();
        assert!(admitted.domains.is_empty());
        assert_eq!(admitted.others.len(), 2);
    }

    fn named(text: &str, group: u32, domain: &str) -> Candidate {
        Candidate {
            domain: Some(DomainName::Named(domain.to_owned())),
            ..candidate(text, group, true)
        }
    }

    #[test]
    fn a_vm_may_have_a_domain_for_each_of_its_groups() {
        let admitted = judge(vec![
            named("03:00.0", 6, "left"),
            named("05:00.0", 7, "right"),
            named("04:00.0", 6, "left"),
        ])
        .unwrap();
        let sizes: Vec<_> = admitted.domains.iter().map(|d| d.members.len()).collect();
        assert_eq!(sizes, [2, 1]);
    }

    #[test]
    fn a_group_is_not_split_between_domains() {
        let pair = vec![named("03:00.0", 6, "left"), named("04:00.0", 6, "right")];
        assert!(matches!(reasons(pair)[..], [Reason::SplitGroup { .. }]));
    }

    #[test]
    fn a_group_is_not_split_between_contexts() {
        let a = candidate("03:00.0", 6, true);
        let b = candidate("04:00.0", 6, false);
        let expected = Reason::SplitGroup {
            a: sbdf("03:00.0"),
            b: sbdf("04:00.0"),
            group: GroupId(6),
        };
        assert_eq!(reasons(vec![a, b]), [expected]);
    }

    #[test]
    fn a_device_given_twice_is_refused() {
        let a = candidate("03:00.0", 6, true);
        let b = candidate("03:00.0", 6, false);
        assert_eq!(reasons(vec![a, b]), [Reason::Twice(sbdf("03:00.0"))]);
    }

    #[test]
    fn a_device_of_the_host_is_refused() {
        for driver in [None, Some("nvme")] {
            let mut a = candidate("03:00.0", 6, false);
            a.members = vec![member("03:00.0", driver)];
            let expected = Reason::NotBound {
                sbdf: sbdf("03:00.0"),
                driver: driver.map(str::to_owned),
            };
            assert_eq!(reasons(vec![a]), [expected]);
        }
    }

    #[test]
    fn a_neighbour_of_the_host_is_refused_by_name() {
        let mut a = candidate("03:00.0", 6, false);
        a.members.push(member("04:00.0", Some("e1000e")));
        let text = judge(vec![a]).unwrap_err().to_string();
        assert!(
            text.contains("0000:04:00.0") && text.contains("e1000e"),
            "{text}"
        );
    }

    #[test]
    fn neighbours_that_do_no_dma_of_the_host_are_fine() {
        for driver in [
            None,
            Some("pcieport"),
            Some("pci-stub"),
            Some("mlx5_vfio_pci"),
        ] {
            let mut a = candidate("03:00.0", 6, true);
            a.members.push(member("02:00.0", driver));
            assert!(judge(vec![a]).is_ok(), "{driver:?}");
        }
    }

    #[test]
    fn every_reason_is_told_at_once() {
        let a = candidate("03:00.0", 6, true);
        let b = candidate("04:00.0", 7, true);
        let mut c = candidate("05:00.0", 8, false);
        c.members = vec![member("05:00.0", None)];
        assert_eq!(reasons(vec![a, b, c]).len(), 2);
    }
}
