//! Requests for devices, from the VM's configuration.

use std::collections::BTreeSet;
use std::sync::Arc;

use iommu_group::Sbdf;
use iommu_group::assignment::DomainName;
use kvm_ioctls::VmFd;
use p2p_vfio::{DevicePlan, DeviceRequest, DeviceSet, Interface, IommuOptions, PreopenedDevices};
use vmm_api::{DeviceConfig, PlatformConfig};

use crate::error::VmmError;
use crate::host_reader::HostReader;

/// Checks the devices of a VM against a snapshot of the host and the policy. Opens and changes nothing.
pub(crate) fn plan_devices(
    configs: &[DeviceConfig],
    host: &HostReader,
) -> Result<DevicePlan, VmmError> {
    let requests = configs.iter().map(request);
    let requests: Vec<DeviceRequest> = requests.collect::<Result<_, VmmError>>()?;
    Ok(DeviceSet::plan(host.view()?, &requests)?)
}

/// The request for a device, which has an id.
pub(super) fn request(config: &DeviceConfig) -> Result<DeviceRequest, VmmError> {
    Ok(DeviceRequest {
        tag: config.id.clone().unwrap_or_default(),
        path: config.directory()?.to_owned(),
        domain: domain_of(config),
        expose: config.expose.iter().copied().collect(),
    })
}

/// How the devices of a VM are opened.
pub(crate) fn iommu_options(
    vm: &Arc<VmFd>,
    platform: PlatformConfig,
    preopened: &Arc<PreopenedDevices>,
    hotplug: bool,
) -> IommuOptions {
    IommuOptions {
        interface: platform.iommufd.map(|on| match on {
            true => Interface::Iommufd,
            false => Interface::Type1,
        }),
        kvm: Some(Arc::clone(vm)),
        preopened: Arc::clone(preopened),
        hotplug,
    }
}

/// Functions whose exposure the devices' configurations accept.
pub(crate) fn accepted<'a>(configs: impl Iterator<Item = &'a DeviceConfig>) -> BTreeSet<Sbdf> {
    configs.flat_map(|config| &config.expose).copied().collect()
}

/// The P2P domain that a device is configured to join.
pub(crate) fn domain_of(config: &DeviceConfig) -> Option<DomainName> {
    DomainName::requested(config.p2p, config.p2p_domain.as_deref())
}
