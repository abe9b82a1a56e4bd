//! The check of all devices of one VM.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Change, ContextKind, DeviceInfo, DomainName, Exposed, HostSnapshot, Reason, Refusal,
    UnsafeInterrupts,
};
use crate::policy::share;
use crate::{Address, AddressRange, Gpa, MemoryHole, Placement, Route, Sbdf, Scope, Verdict};

/// The devices requested for a VM.
#[derive(Clone, Debug)]
pub struct AssignmentRequest<'a> {
    /// All requested devices.
    pub devices: Vec<DeviceInfo>,
    /// Functions that the VM uses in other ways, such as those behind vDPA devices.
    pub others: &'a BTreeSet<Sbdf>,
    /// Functions whose exposure the request accepts. The policy may accept others.
    pub expose: &'a BTreeSet<Sbdf>,
    /// `Some` if the last device is added to a VM that has the others: the functions that the VM had before and does
    /// not have now.
    pub departed: Option<&'a BTreeSet<Sbdf>>,
}

/// The devices of one VM, sorted into IOMMU contexts.
#[derive(Debug)]
pub struct Assignment {
    /// The devices with peer-to-peer: the members of each P2P domain, all in one group. Each domain has its own
    /// context.
    pub domains: Vec<Vec<DeviceInfo>>,
    /// The other devices. They share a context that maps no BAR.
    pub unshared: Vec<DeviceInfo>,
    /// Exposures that are accepted, and those that depend on the root complex or on a device.
    pub exposures: Vec<Exposed>,
    /// Set if the operator accepts that interrupts may not be isolated.
    pub unsafe_interrupts: Option<UnsafeInterrupts>,
}

impl Assignment {
    /// All devices. Those with peer-to-peer come first.
    pub fn devices(&self) -> impl Iterator<Item = &DeviceInfo> {
        self.domains.iter().flatten().chain(&self.unshared)
    }

    /// The kind of context that each device needs.
    #[must_use]
    pub fn context_kinds(&self) -> Vec<(Sbdf, ContextKind)> {
        self.devices()
            .map(|device| (device.sbdf, device.context_kind()))
            .collect()
    }

    /// Checks that running devices, as an earlier assignment placed them, need no change when others are added.
    ///
    /// # Errors
    /// The [`Refusal`] names the running devices whose BARs would have to be shown, hidden or moved.
    pub fn keeps<'a>(&self, running: impl Iterator<Item = &'a DeviceInfo>) -> Result<(), Refusal> {
        let members = self.domains.iter().flatten();
        let change = |old: &DeviceInfo| {
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
        Refusal::of(running.filter_map(change).collect())
    }
}

impl DeviceInfo {
    /// Checks that requests of the device reach existing guest memory. Memory that is added later is placed for it.
    ///
    /// # Errors
    /// The [`Refusal`] names the first memory range that the requests do not reach, and the port that prevents it.
    pub fn reaches_memory(
        &self,
        memory: impl IntoIterator<Item = AddressRange<Gpa>>,
    ) -> Result<(), Refusal> {
        let unreachable = memory.into_iter().find_map(|memory| {
            let last = memory.end().value().checked_sub(1)?;
            let hole = MemoryHole::worst(&self.holes, &(memory.start().value()..=last))?.clone();
            Some(Reason::Memory {
                sbdf: self.sbdf,
                memory,
                hole,
            })
        });
        Refusal::of(unreachable.into_iter().collect())
    }
}

/// Whether two devices of a VM are not peers, given the P2P domain of each device; `None` is a device outside any
/// domain.
pub fn has_unshared(domains: impl IntoIterator<Item = Option<DomainName>>) -> bool {
    let mut domains = domains.into_iter();
    let Some(first) = domains.next() else {
        return false;
    };
    domains.any(|domain| domain.is_none() || domain != first)
}

/// Decides which devices share which IOMMU context, or refuses with all reasons.
///
/// The rules:
/// * The members of a P2P domain are in one IOMMU group. The policy allows at least one of them as a target, and the
///   hardware routes requests to every member that is a target.
/// * The IOMMU translates a group as a whole, so all devices of a group are in the same domain or none of them is in a
///   domain.
/// * No device reaches a function outside the VM without the IOMMU, and no device for another VM reaches a device of
///   this VM without the IOMMU, unless that exposure is accepted by name.
/// * Interrupts are isolated, or the operator accepts that they may not be.
///
/// # Errors
/// The [`Refusal`] names the devices and groups that prevent the assignment.
pub fn check_assignment(
    host: &HostSnapshot,
    request: AssignmentRequest<'_>,
) -> Result<Assignment, Refusal> {
    let AssignmentRequest {
        devices,
        others,
        expose,
        departed,
    } = request;
    let own = devices.iter().map(|device| device.sbdf);
    let own = own.chain(others.iter().copied()).collect();
    let exposures = match departed.zip(devices.last()) {
        Some((departed, new)) => host.exposures_of_newcomer(new, &own, departed, expose),
        None => host.exposures(&own, expose),
    };
    let pairs = host.pairs(Scope::SameGroup);
    decide(devices, |from, to| pairs.hardware(from, to), exposures)
}

/// Implements [`check_assignment`]. `hardware` is the verdict on an initiator and a target without the policy,
/// `exposures` are those of the devices.
pub(super) fn decide(
    devices: Vec<DeviceInfo>,
    hardware: impl Fn(Sbdf, Sbdf) -> Verdict,
    exposures: Vec<Exposed>,
) -> Result<Assignment, Refusal> {
    let mut reasons = Vec::new();
    let mut seen = BTreeSet::new();
    for device in &devices {
        if !seen.insert(device.sbdf) {
            reasons.push(Reason::Twice(device.sbdf));
            continue;
        }
        reasons.extend(unassignable(device));
    }
    let mut unsafe_interrupts = None;
    for found in devices.iter().filter_map(|d| d.unsafe_interrupts.as_ref()) {
        unsafe_interrupts = Some(found.clone());
        let reason = Reason::Interrupts(found.clone());
        if found.consent.is_none() && !reasons.contains(&reason) {
            reasons.push(reason);
        }
    }
    for (at, a) in devices.iter().enumerate() {
        let later = devices.iter().skip(at.saturating_add(1));
        reasons.extend(later.filter_map(|b| incompatible(a, b)));
    }
    let mut domains: BTreeMap<DomainName, Vec<DeviceInfo>> = BTreeMap::new();
    let mut unshared = Vec::new();
    for device in devices {
        match &device.domain {
            Some(name) => domains.entry(name.clone()).or_default().push(device),
            None => unshared.push(device),
        }
    }
    let mut domains: Vec<_> = domains.into_values().collect();
    // Policy and routes are irrelevant for devices that cannot be assigned together.
    if reasons.is_empty() {
        for members in &mut domains {
            reasons.extend(join(members, &hardware));
        }
    }
    let refused = exposures.iter().filter(|exposed| exposed.is_refused());
    let refused: Vec<Exposed> = refused.cloned().collect();
    if !refused.is_empty() {
        reasons.push(Reason::Exposed(refused));
    }
    Refusal::of(reasons)?;
    Ok(Assignment {
        domains,
        unshared,
        exposures,
        unsafe_interrupts,
    })
}

/// Decides which members of a domain show their BARs to the others, and where. The BARs are at their bus addresses if a
/// request to a shown one goes directly across a switch. Returns the reasons against the domain.
fn join(members: &mut [DeviceInfo], hardware: impl Fn(Sbdf, Sbdf) -> Verdict) -> Vec<Reason> {
    let direct = |from, to| {
        let route = Route::SwitchLocal;
        matches!(hardware(from, to), Verdict::Allowed { route: found, .. } if found == route)
    };
    let rules: Vec<_> = members.iter().map(|m| (m.sbdf, &m.policy)).collect();
    let shown = match share(&rules, direct) {
        Ok(shown) => shown,
        Err(reasons) => return reasons.into_iter().map(Reason::from).collect(),
    };
    let mut reasons = Vec::new();
    let mut placement = Placement::Anywhere;
    let all = rules.iter().map(|(sbdf, _)| *sbdf);
    let targets = all.clone().zip(&shown).filter(|(_, shown)| **shown);
    let pairs = targets.flat_map(|(to, _)| all.clone().map(move |from| (from, to)));
    for (from, to) in pairs.filter(|(from, to)| from != to) {
        match hardware(from, to) {
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

/// The reason why two devices cannot be assigned together.
fn incompatible(a: &DeviceInfo, b: &DeviceInfo) -> Option<Reason> {
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

fn unassignable(device: &DeviceInfo) -> Vec<Reason> {
    let own = device.member();
    if !own.is_some_and(|own| own.driver_kind().is_vfio()) {
        return vec![Reason::NotBound {
            sbdf: device.sbdf,
            driver: own.and_then(|own| own.driver.clone()),
        }];
    }
    let mut reasons = Vec::new();
    for member in &device.members {
        if let Some(driver) = &member.driver
            && !member.driver_kind().leaves_group_viable()
        {
            reasons.push(Reason::Neighbour {
                sbdf: device.sbdf,
                group: device.group,
                neighbour: member.name.clone(),
                driver: driver.clone(),
            });
        }
    }
    reasons
}
