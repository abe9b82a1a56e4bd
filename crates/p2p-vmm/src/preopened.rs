//! Devices that the operator or a client passes as open descriptors instead of paths.

use std::os::fd::OwnedFd;

use anyhow::Context;
use hotplug::{DeviceConfig, VmConfig};
use iommu_group::{Sbdf, Sysfs};
use p2p_vfio::{Handed, HandedError, Reason, Refusal};

/// Takes all inherited descriptors that the VM's description names, and replaces them by sysfs paths.
pub(crate) fn take_inherited(config: &mut VmConfig) -> anyhow::Result<Handed> {
    let mut preopened = Handed::default();
    if let Some(fd) = config.platform.iommufd_fd {
        let file = fd.duplicate().map_err(HandedError::NoIommufd);
        let taken = file.and_then(|file| preopened.with_iommufd(file));
        preopened = taken.with_context(|| format!("--platform iommufd_fd={fd}"))?;
    }
    for device in &mut config.devices {
        if let Some(fd) = device.fd {
            let what = || format!("--device fd={fd}");
            let file = fd.duplicate().map_err(HandedError::NoDevice);
            take_device(&preopened, device, file.with_context(what)?).with_context(what)?;
        }
    }
    Ok(preopened)
}

/// Takes the descriptor of `device`, and replaces it by the device's sysfs path.
pub(crate) fn take_device(
    preopened: &Handed,
    device: &mut DeviceConfig,
    descriptor: OwnedFd,
) -> anyhow::Result<Sbdf> {
    let sbdf = preopened.take(descriptor).map_err(|error| match error {
        HandedError::Twice(sbdf) => {
            let reasons = vec![Reason::Twice(sbdf)];
            anyhow::Error::from(Refusal { reasons })
        }
        error => error.into(),
    })?;
    device.path = Some(Sysfs::default().device_dir(sbdf));
    device.fd = None;
    Ok(sbdf)
}
