//! Devices that the operator or a client hands in open, instead of a path.

use std::os::fd::OwnedFd;
use std::path::Path;

use anyhow::Context;
use hotplug::{DeviceConfig, VmConfig};
use iommu_group::{Sbdf, Sysfs};
use p2p_vfio::{Handed, HandedError, Reason, Refusal};

/// Takes all descriptors that a VM's description has of those that this process was started with; its devices have
/// paths then.
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

/// Takes the descriptor that `device` is; it has a path then.
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

/// Closes a device that leaves the VM, if it had come open.
pub(crate) fn close(preopened: &Handed, device: &DeviceConfig) {
    // What came open has a path of our own making.
    let name = device.path.as_deref().and_then(Path::file_name);
    if let Some(Ok(sbdf)) = name.and_then(|name| name.to_str()).map(str::parse) {
        preopened.give_up(sbdf);
    }
}
