//! Devices that the operator or a client passes as open descriptors instead of paths.

use std::os::fd::OwnedFd;

use iommu_group::assignment::{Reason, Refusal};
use iommu_group::{Sbdf, Sysfs};
use p2p_vfio::{DeviceSetError, PreopenedDevices, PreopenedError};
use vmm_api::{DeviceConfig, VmConfig};

use crate::error::VmmError;

/// Takes all inherited descriptors that the VM's description names, and replaces them by sysfs paths.
pub(crate) fn take_inherited(config: &mut VmConfig) -> Result<PreopenedDevices, VmmError> {
    let mut preopened = PreopenedDevices::default();
    if let Some(fd) = config.platform.iommufd_fd {
        let file = fd.duplicate().map_err(PreopenedError::IommufdError);
        let taken = file.and_then(|file| preopened.with_iommufd(file));
        preopened = taken.map_err(|source| VmmError::Option {
            option: format!("--platform iommufd_fd={fd}"),
            source,
        })?;
    }
    for device in &mut config.devices {
        if let Some(fd) = device.fd {
            let file = fd.duplicate().map_err(PreopenedError::NoDevice);
            let taken = file
                .map_err(VmmError::from)
                .and_then(|file| take_device(&preopened, device, file));
            taken.map_err(|error| match error {
                VmmError::Descriptor(source) => VmmError::Option {
                    option: format!("--device fd={fd}"),
                    source,
                },
                error => error,
            })?;
        }
    }
    Ok(preopened)
}

/// Takes the descriptor of `device`, and replaces it by the device's sysfs path.
pub(crate) fn take_device(
    preopened: &PreopenedDevices,
    device: &mut DeviceConfig,
    descriptor: OwnedFd,
) -> Result<Sbdf, VmmError> {
    let sbdf = preopened.take(descriptor).map_err(|error| match error {
        PreopenedError::Twice(sbdf) => {
            let refusal = Refusal::from(Reason::Twice(sbdf));
            DeviceSetError::from(refusal).into()
        }
        error => VmmError::from(error),
    })?;
    device.path = Some(Sysfs::default().device_dir(sbdf));
    device.fd = None;
    Ok(sbdf)
}
