//! Whether a VM may have the devices that were asked for.

use std::collections::BTreeMap;

use hotplug::DeviceConfig;
use iommu_group::Sbdf;
use p2p_vfio::{Admitted, Candidate, DomainName, HostView, Policy, admit};

/// Devices that a VM may have.
pub(crate) struct Judged {
    /// Sorted into IOMMU contexts.
    pub(super) admitted: Admitted,
    /// What was asked for.
    pub(super) configs: BTreeMap<Sbdf, DeviceConfig>,
    /// The host as it was then.
    pub(super) host: HostView,
}

/// Reads what the host says of the devices and judges it by `policy`. Nothing is opened or
/// changed.
///
/// Refusals are [`Refusal`](p2p_vfio::Refusal) or [`SysfsError`](iommu_group::SysfsError).
pub(crate) fn judge(configs: &[DeviceConfig], policy: &Policy) -> anyhow::Result<Judged> {
    let host = HostView::read(policy.clone())?;
    let mut named = BTreeMap::new();
    let mut candidates = Vec::new();
    for config in configs {
        let candidate = Candidate::read(&host, config.directory()?, domain_of(config))?;
        named
            .entry(candidate.sbdf)
            .or_insert_with(|| config.clone());
        candidates.push(candidate);
    }
    Ok(Judged {
        admitted: admit(candidates, host.verdicts())?,
        configs: named,
        host,
    })
}

/// The P2P domain that a device was asked to join.
pub(crate) fn domain_of(config: &DeviceConfig) -> Option<DomainName> {
    let name = config.p2p_domain.clone();
    let domain = name.map_or(DomainName::Unnamed, DomainName::Named);
    config.p2p.then_some(domain)
}
