//! vDPA devices. The kernel maps guest memory for the PCI function of a vDPA device, so that function is checked like
//! an assigned one, except for its driver (linux 7.2 drivers/vhost/vdpa.c: `vhost_vdpa_alloc_domain()`).

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use iommu_group::assignment::{DeviceInfo, HostSnapshot};
use iommu_group::{DriverKind, Sbdf, Sysfs};
use rustix::fs::{major, minor};
use serde_json::Value;

use super::refusal::{Limit, Refusal};

/// The paths of the vDPA devices in a VM's configuration.
pub(super) fn paths(config: &Value) -> Result<Vec<PathBuf>, String> {
    let devices = config.get("vdpa").and_then(Value::as_array);
    devices.into_iter().flatten().map(path).collect()
}

/// The path in the configuration of a vDPA device.
pub(super) fn path(device: &Value) -> Result<PathBuf, String> {
    let path = device.get("path").and_then(Value::as_str);
    path.map(PathBuf::from)
        .ok_or_else(|| "a vDPA device needs a path".to_owned())
}

/// The functions of vDPA devices. Each of them must be the only function with a driver in its IOMMU group.
pub(super) fn functions(
    sysfs: &Sysfs,
    host: &HostSnapshot,
    paths: &[PathBuf],
) -> Result<Vec<Sbdf>, Refusal> {
    let checked = paths.iter().map(|path| {
        let sbdf = function(sysfs, path).ok_or_else(|| Limit::Vdpa { path: path.clone() });
        let sbdf = sbdf.map_err(|limit| Refusal::Limits(vec![limit]))?;
        let info = DeviceInfo::read(host, sysfs, &sysfs.device_dir(sbdf), None);
        let info = info.map_err(|source| Refusal::Host { source })?;
        let mut neighbours = info.members.iter().filter(|m| m.sbdf != Some(sbdf));
        let driven = neighbours.find_map(|member| {
            let driver = member.driver.as_ref();
            let driver = driver.filter(|_| member.driver_kind() != DriverKind::Port);
            driver.map(|driver| (member.name.clone(), driver.clone()))
        });
        match driven {
            None => Ok(sbdf),
            Some((neighbour, driver)) => Err(Refusal::Limits(vec![Limit::VdpaNeighbour {
                path: path.clone(),
                function: sbdf,
                neighbour,
                driver,
            }])),
        }
    });
    checked.collect()
}

/// The PCI function of a vhost-vdpa device file: the last one in the device's sysfs path.
fn function(sysfs: &Sysfs, path: &Path) -> Option<Sbdf> {
    let file = fs::metadata(path).ok()?;
    if !file.file_type().is_char_device() {
        return None;
    }
    let number = format!("{}:{}", major(file.rdev()), minor(file.rdev()));
    let device = fs::canonicalize(sysfs.root().join("dev/char").join(number)).ok()?;
    let name = |path: &Path| path.file_name()?.to_str().map(str::to_owned);
    if !name(&device)?.starts_with("vhost-vdpa-") {
        return None;
    }
    device.ancestors().find_map(|above| {
        let sbdf = name(above)?.parse().ok()?;
        let own = fs::canonicalize(sysfs.device_dir(sbdf)).ok()?;
        (own == above).then_some(sbdf)
    })
}
