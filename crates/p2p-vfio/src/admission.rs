//! Which devices a VM may have, and which of them may talk to each other.
//!
//! Reading the host ([`HostView`], [`Candidate::read`]) and deciding ([`admit`]) are apart; nothing is opened or
//! changed by either.

mod exposed;
mod host;
mod refusal;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use iommu_group::{Placement, Route, Sbdf, Verdict, is_vfio_driver};

use crate::context::Reach;
use crate::policy::share;

pub use exposed::Exposed;
pub use host::{Candidate, DomainName, HostView, UnsafeInterrupts};
pub use refusal::{Change, Reason, Refusal};

/// The devices of one P2P domain.
#[derive(Debug)]
pub struct AdmittedDomain {
    /// Its members, all of one group.
    pub members: Vec<Candidate>,
}

/// The devices of one VM, sorted into IOMMU contexts.
#[derive(Debug)]
pub struct Admitted {
    /// The devices with peer-to-peer, domain by domain: those of a domain share a context of their own.
    pub domains: Vec<AdmittedDomain>,
    /// The others: they share a context in which no BAR is mapped.
    pub others: Vec<Candidate>,
    /// Exposures that are accepted, and those that are up to the root complex or to a device.
    pub exposures: Vec<Exposed>,
    /// Set if the operator accepts that interrupts may not be isolated.
    pub unsafe_interrupts: Option<UnsafeInterrupts>,
}

impl Admitted {
    /// Every device with what it may reach: the choice of the kernel's interface depends on that
    /// ([`HostIommu::choose`](crate::HostIommu::choose)).
    pub fn reaches(&self) -> Vec<(Sbdf, Reach)> {
        let members = self.domains.iter().flat_map(|domain| &domain.members);
        let all = members.chain(&self.others);
        all.map(|device| (device.sbdf, device.reach())).collect()
    }

    /// Whether devices that run already, as an earlier admission had them, may stay as they are beside those that come.
    ///
    /// # Errors
    /// The [`Refusal`] names those that would have to be shown, hidden or moved.
    pub fn keeps<'a>(&self, running: impl Iterator<Item = &'a Candidate>) -> Result<(), Refusal> {
        let members = self.domains.iter().flat_map(|domain| &domain.members);
        let change = |old: &Candidate| {
            let new = members.clone().find(|member| member.sbdf == old.sbdf)?;
            let change = match (old.hidden, new.hidden) {
                (false, true) => Change::Hide,
                (true, false) => Change::Show,
                _ if old.placement != new.placement => Change::Move,
                _ => return None,
            };
            Some(Reason::Runs {
                sbdf: old.sbdf,
                change,
            })
        };
        let reasons: Vec<_> = running.filter_map(change).collect();
        if reasons.is_empty() {
            return Ok(());
        }
        Err(Refusal { reasons })
    }
}

/// Whether some two devices of a VM are not peers, by the P2P domain of each; `None` is a device outside of any.
pub fn has_unshared(domains: impl IntoIterator<Item = Option<DomainName>>) -> bool {
    let mut domains = domains.into_iter();
    let Some(first) = domains.next() else {
        return false;
    };
    domains.any(|domain| domain.is_none() || domain != first)
}

/// Whether a neighbour with this driver leaves the group assignable: drivers that manage DMA
/// ownership themselves (linux: `driver_managed_dma` in `struct pci_driver`).
fn leaves_group_viable(driver: &str) -> bool {
    is_vfio_driver(driver) || matches!(driver, "pcieport" | "pci-stub")
}

/// Decides which devices share which IOMMU context, or refuses with every reason there is.
///
/// The rule: the devices of a P2P domain must all be in one IOMMU group, their policy must leave something to share,
/// the hardware must carry requests to whatever is shared (`verdict` of initiator and target), and a group is
/// translated as a whole, so a device of that group can neither stay out nor be in another domain. Beyond the VM none of
/// its devices may reach a function without the IOMMU, and no device for another VM may reach one of them: `exposures`
/// are those of the devices ([`HostView::exposures`]), and each that is certain has to be accepted by name. Interrupts must be
/// isolated, or the operator accepts that they may not be.
///
/// # Errors
/// The [`Refusal`] names the devices and groups that stand in the way.
pub fn admit(
    candidates: Vec<Candidate>,
    verdict: impl Fn(Sbdf, Sbdf) -> Verdict,
    exposures: Vec<Exposed>,
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
    let mut unsafe_interrupts = None;
    for found in candidates
        .iter()
        .filter_map(|c| c.unsafe_interrupts.as_ref())
    {
        unsafe_interrupts = Some(found.clone());
        let reason = Reason::Interrupts(found.clone());
        if found.consent.is_none() && !reasons.contains(&reason) {
            reasons.push(reason);
        }
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
    let mut domains: Vec<_> = domains.into_values().collect();
    // Policy and routes say nothing new between devices that are apart anyway.
    if reasons.is_empty() {
        for members in &mut domains {
            reasons.extend(join(members, &verdict));
        }
    }
    let refused = exposures.iter().filter(|exposed| exposed.is_refused());
    let refused: Vec<Exposed> = refused.cloned().collect();
    if !refused.is_empty() {
        reasons.push(Reason::Exposed(refused));
    }
    if !reasons.is_empty() {
        return Err(Refusal { reasons });
    }
    let domains = domains.into_iter();
    Ok(Admitted {
        domains: domains.map(|members| AdmittedDomain { members }).collect(),
        others,
        exposures,
        unsafe_interrupts,
    })
}

/// Decides what the members of a domain show to each other, and where: at their bus addresses if any request to what
/// is shown goes straight across a switch. Returns what stands in the way.
fn join(members: &mut [Candidate], verdict: impl Fn(Sbdf, Sbdf) -> Verdict) -> Vec<Reason> {
    let direct = |from, to| {
        let route = Route::SwitchLocal;
        matches!(verdict(from, to), Verdict::Allowed { route: found, .. } if found == route)
    };
    let rulings: Vec<_> = members.iter().map(|m| (m.sbdf, &m.ruling)).collect();
    let shown = match share(&rulings, direct) {
        Ok(shown) => shown,
        Err(reasons) => return reasons.into_iter().map(Reason::from).collect(),
    };
    let mut reasons = Vec::new();
    let mut placement = Placement::Anywhere;
    let all = rulings.iter().map(|(sbdf, _)| *sbdf);
    let targets = all.clone().zip(&shown).filter(|(_, shown)| **shown);
    let pairs = targets.flat_map(|(to, _)| all.clone().map(move |from| (from, to)));
    for (from, to) in pairs.filter(|(from, to)| from != to) {
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
    for (member, shown) in members.iter_mut().zip(shown) {
        member.hidden = !shown;
        member.placement = placement;
    }
    reasons
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
    if !candidate.driver().is_some_and(is_vfio_driver) {
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
