//! Checks whether a VM may have the requested devices.

use std::collections::{BTreeMap, BTreeSet};

use iommu_group::assignment::{
    Assignment, AssignmentRequest, DeviceInfo, DomainName, Exposed, HostSnapshot, check_assignment,
};
use iommu_group::{Sbdf, Sysfs};
use vmm_api::DeviceConfig;

use crate::error::VmmError;
use crate::host_reader::HostReader;

/// Devices that a VM may have.
pub(crate) struct CheckedDevices {
    /// The devices of each IOMMU context.
    pub(super) assignment: Assignment,
    /// The requested configuration of each device.
    pub(super) configs: BTreeMap<Sbdf, DeviceConfig>,
    /// The host snapshot of the check.
    pub(super) host: HostSnapshot,
}

impl CheckedDevices {
    /// The exposures that are accepted, and those that are uncertain.
    pub(crate) fn exposures(&self) -> &[Exposed] {
        &self.assignment.exposures
    }
}

/// Reads a host snapshot and checks the devices against it and the policy. Opens and changes nothing.
pub(crate) fn check_devices(
    configs: &[DeviceConfig],
    host: &HostReader,
) -> Result<CheckedDevices, VmmError> {
    check(configs, host, None)
}

/// Checks an added device together with the present ones. `departed` are functions that the VM had.
pub(super) fn check_added_device(
    running: &[DeviceConfig],
    added: &DeviceConfig,
    host: &HostReader,
    departed: &BTreeSet<Sbdf>,
) -> Result<CheckedDevices, VmmError> {
    let mut configs = running.to_vec();
    configs.push(added.clone());
    check(&configs, host, Some(departed))
}

fn check(
    all: &[DeviceConfig],
    host: &HostReader,
    departed: Option<&BTreeSet<Sbdf>>,
) -> Result<CheckedDevices, VmmError> {
    let (host, sysfs) = (host.view()?, Sysfs::default());
    let mut configs = BTreeMap::new();
    let mut devices = Vec::new();
    for config in all {
        let device = DeviceInfo::read(&host, &sysfs, config.directory()?, domain_of(config))?;
        let named = configs.entry(device.sbdf);
        named.or_insert_with(|| config.clone());
        devices.push(device);
    }
    let request = AssignmentRequest {
        devices,
        others: &BTreeSet::new(),
        expose: &accepted(configs.values()),
        departed,
    };
    let assignment = check_assignment(&host, request)?;
    if let Some(accepted) = &assignment.unsafe_interrupts {
        log::warn!("{accepted}");
    }
    Ok(CheckedDevices {
        assignment,
        configs,
        host,
    })
}

/// Functions whose exposure the devices' configurations accept.
pub(crate) fn accepted<'a>(configs: impl Iterator<Item = &'a DeviceConfig>) -> BTreeSet<Sbdf> {
    configs.flat_map(|config| &config.expose).copied().collect()
}

/// The P2P domain that a device is configured to join.
pub(crate) fn domain_of(config: &DeviceConfig) -> Option<DomainName> {
    DomainName::requested(config.p2p, config.p2p_domain.as_deref())
}
