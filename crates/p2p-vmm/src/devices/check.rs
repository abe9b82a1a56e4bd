//! Checks whether a VM may have the requested devices.

use std::collections::{BTreeMap, BTreeSet};

use hotplug::DeviceConfig;
use iommu_group::Sbdf;
use p2p_vfio::{Admitted, Candidate, DomainName, Exposed, HostView, admit};

use crate::host_reader::HostReader;

/// Devices that a VM may have.
pub(crate) struct CheckedDevices {
    /// The devices of each IOMMU context.
    pub(super) admitted: Admitted,
    /// The requested configuration of each device.
    pub(super) configs: BTreeMap<Sbdf, DeviceConfig>,
    /// The host snapshot of the check.
    pub(super) host: HostView,
}

impl CheckedDevices {
    /// The exposures that are accepted, and those that are uncertain.
    pub(crate) fn exposures(&self) -> &[Exposed] {
        &self.admitted.exposures
    }
}

/// Reads a host snapshot and checks the devices against it and the policy. Opens and changes nothing.
///
/// Refusals are [`Refusal`](p2p_vfio::Refusal) or [`SysfsError`](iommu_group::SysfsError).
pub(crate) fn check_devices(
    configs: &[DeviceConfig],
    host: &HostReader,
) -> anyhow::Result<CheckedDevices> {
    let request = Request::read(configs, host)?;
    let devices = request.configs.keys().copied().collect();
    let exposures = request.host.exposures(&devices, &request.accepted());
    request.check(exposures)
}

/// Checks an added device together with the present ones. `departed` are functions that the VM had.
pub(super) fn check_added_device(
    running: &[DeviceConfig],
    added: &DeviceConfig,
    host: &HostReader,
    departed: &BTreeSet<Sbdf>,
) -> anyhow::Result<CheckedDevices> {
    let mut configs = running.to_vec();
    configs.push(added.clone());
    let request = Request::read(&configs, host)?;
    let devices = request.configs.keys().copied().collect();
    let accepted = request.accepted();
    let (host, added) = (&request.host, request.candidates.last());
    let exposures =
        added.map(|added| host.exposures_of_newcomer(added, &devices, departed, &accepted));
    request.check(exposures.unwrap_or_default())
}

/// Requested devices, with the host's facts.
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

    fn check(self, exposures: Vec<Exposed>) -> anyhow::Result<CheckedDevices> {
        let admitted = admit(self.candidates, self.host.verdicts(), exposures)?;
        if let Some(accepted) = &admitted.unsafe_interrupts {
            log::warn!("{accepted}");
        }
        Ok(CheckedDevices {
            admitted,
            configs: self.configs,
            host: self.host,
        })
    }
}

/// Functions whose exposure the devices' configurations accept.
pub(crate) fn accepted<'a>(configs: impl Iterator<Item = &'a DeviceConfig>) -> BTreeSet<Sbdf> {
    configs.flat_map(|config| &config.expose).copied().collect()
}

/// The P2P domain that a device is configured to join.
pub(crate) fn domain_of(config: &DeviceConfig) -> Option<DomainName> {
    let name = config.p2p_domain.clone();
    let domain = name.map_or(DomainName::Unnamed, DomainName::Named);
    config.p2p.then_some(domain)
}
