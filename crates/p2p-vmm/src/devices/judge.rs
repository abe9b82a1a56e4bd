//! Whether a VM may have the devices that were asked for.

use std::collections::{BTreeMap, BTreeSet};

use hotplug::DeviceConfig;
use iommu_group::Sbdf;
use p2p_vfio::{Admitted, Candidate, DomainName, Exposed, HostView, admit};

use crate::host_reader::HostReader;

/// Devices that a VM may have.
pub(crate) struct Judged {
    /// Sorted into IOMMU contexts.
    pub(super) admitted: Admitted,
    /// What was asked for.
    pub(super) configs: BTreeMap<Sbdf, DeviceConfig>,
    /// The host as it was then.
    pub(super) host: HostView,
}

impl Judged {
    /// The exposures that are accepted, and those that are doubtful.
    pub(crate) fn exposures(&self) -> &[Exposed] {
        &self.admitted.exposures
    }
}

/// Reads what the host says of the devices and judges it by the policy. Nothing is opened or
/// changed.
///
/// Refusals are [`Refusal`](p2p_vfio::Refusal) or [`SysfsError`](iommu_group::SysfsError).
pub(crate) fn judge(configs: &[DeviceConfig], host: &HostReader) -> anyhow::Result<Judged> {
    let request = Request::read(configs, host)?;
    let devices = request.configs.keys().copied().collect();
    let exposures = request.host.exposures(&devices, &request.accepted());
    request.judge(exposures)
}

/// Judges a device that comes together with those that run. `departed` are those that the VM had.
pub(super) fn judge_added(
    running: &[DeviceConfig],
    added: &DeviceConfig,
    host: &HostReader,
    departed: &BTreeSet<Sbdf>,
) -> anyhow::Result<Judged> {
    let mut configs = running.to_vec();
    configs.push(added.clone());
    let request = Request::read(&configs, host)?;
    let devices = request.configs.keys().copied().collect();
    let accepted = request.accepted();
    let (host, added) = (&request.host, request.candidates.last());
    let exposures =
        added.map(|added| host.exposures_of_newcomer(added, &devices, departed, &accepted));
    request.judge(exposures.unwrap_or_default())
}

/// Devices that were asked for, and what the host says of them.
struct Request {
    host: HostView,
    configs: BTreeMap<Sbdf, DeviceConfig>,
    candidates: Vec<Candidate>,
}

impl Request {
    fn read(configs: &[DeviceConfig], host: &HostReader) -> anyhow::Result<Self> {
        let mut this = Self {
            host: host.view()?,
            configs: BTreeMap::new(),
            candidates: Vec::new(),
        };
        for config in configs {
            let candidate = Candidate::read(&this.host, config.directory()?, domain_of(config))?;
            let named = this.configs.entry(candidate.sbdf);
            named.or_insert_with(|| config.clone());
            this.candidates.push(candidate);
        }
        Ok(this)
    }

    fn accepted(&self) -> BTreeSet<Sbdf> {
        accepted(self.configs.values())
    }

    fn judge(self, exposures: Vec<Exposed>) -> anyhow::Result<Judged> {
        let admitted = admit(self.candidates, self.host.verdicts(), exposures)?;
        if let Some(accepted) = &admitted.unsafe_interrupts {
            log::warn!("{accepted}");
        }
        Ok(Judged {
            admitted,
            configs: self.configs,
            host: self.host,
        })
    }
}

/// Functions of which devices were asked for although they are, or become, reachable.
pub(crate) fn accepted<'a>(configs: impl Iterator<Item = &'a DeviceConfig>) -> BTreeSet<Sbdf> {
    configs.flat_map(|config| &config.expose).copied().collect()
}

/// The P2P domain that a device was asked to join.
pub(crate) fn domain_of(config: &DeviceConfig) -> Option<DomainName> {
    let name = config.p2p_domain.clone();
    let domain = name.map_or(DomainName::Unnamed, DomainName::Named);
    config.p2p.then_some(domain)
}
