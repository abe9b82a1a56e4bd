//! Which devices a VM may have, and which of them may talk to each other.
//!
//! Reading the host ([`HostView`], [`Candidate::read`]) and deciding ([`admit`]) are apart; nothing is opened or
//! changed by either.

mod host;
mod refusal;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use iommu_group::{Placement, Sbdf, Verdict};

pub use host::{Candidate, DomainName, HostView};
pub use refusal::{Reason, Refusal};

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
