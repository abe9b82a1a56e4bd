//! Devices that somebody else has opened, and the iommufd that goes with them.
//!
//! A device's file can be bound to an iommufd once only, and to no other after (linux drivers/vfio/device_cdev.c:
//! vfio_df_ioctl_bind_iommufd()). What was opened by somebody else cannot be opened again here, so it stays open and
//! bound from one start of the VM to the next, until it is [given up](Handed::give_up).

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use iommu_group::{Sbdf, Sysfs, SysfsError};
use kvm_ioctls::DeviceFd;
use thiserror::Error;

use crate::sys::{Cdev, Iommufd};

/// Why a descriptor cannot be used.
#[derive(Debug, Error)]
pub enum HandedError {
    /// It is something else than a device of VFIO.
    #[error("the descriptor is not an open /dev/vfio/devices/vfioN: {0}")]
    NoDevice(io::Error),
    /// Its device is no function of this host.
    #[error(transparent)]
    Host(#[from] SysfsError),
    /// The VM has it already.
    #[error("{0} came as a descriptor before")]
    Twice(Sbdf),
}

/// What was handed in for one VM. It outlives each start of the VM.
#[derive(Default)]
pub struct Handed(Mutex<Things>);

#[derive(Default)]
struct Things {
    iommufd: Option<Arc<Iommufd>>,
    devices: BTreeMap<Sbdf, HandedDevice>,
}

/// A device's file as it came.
struct HandedDevice {
    file: File,
    bound: bool,
}

impl Handed {
    /// Takes an open `/dev/iommu`, which is used instead of one of our own.
    #[must_use]
    pub fn with_iommufd(self, file: OwnedFd) -> Self {
        self.things().iommufd = Some(Arc::new(Iommufd::of(file)));
        self
    }

    /// Takes a device's file, and says which function it is of.
    ///
    /// # Errors
    /// [`HandedError`]; the descriptor is closed then.
    pub fn take(&self, descriptor: OwnedFd) -> Result<Sbdf, HandedError> {
        let file = File::from(descriptor);
        let sysfs = Sysfs::default();
        let sbdf = function_of(&sysfs, &file)?;
        let mut things = self.things();
        if things.devices.contains_key(&sbdf) {
            return Err(HandedError::Twice(sbdf));
        }
        let bound = false;
        things.devices.insert(sbdf, HandedDevice { file, bound });
        Ok(sbdf)
    }

    /// Gives up a device, if it came as a descriptor: it is closed when nothing uses it.
    pub fn give_up(&self, sbdf: Sbdf) {
        self.things().devices.remove(&sbdf);
    }

    /// Whether this device came as a descriptor.
    pub(crate) fn has(&self, sbdf: Sbdf) -> bool {
        self.things().devices.contains_key(&sbdf)
    }

    /// What devices are bound to, if something here says so; else a new one.
    pub(crate) fn iommufd(&self) -> io::Result<Arc<Iommufd>> {
        match &self.things().iommufd {
            Some(iommufd) => Ok(Arc::clone(iommufd)),
            None => Iommufd::open().map(Arc::new),
        }
    }

    /// Binds a device that came as a descriptor, or takes it up again if an earlier start of the VM had it; `None` if it
    /// did not come.
    pub(crate) fn bind(
        &self,
        sbdf: Sbdf,
        iommufd: &Arc<Iommufd>,
        kvm: Option<Arc<DeviceFd>>,
    ) -> Option<io::Result<Cdev>> {
        let mut things = self.things();
        let device = things.devices.get_mut(&sbdf)?;
        let taken = device.take(iommufd, kvm);
        if device.bound {
            things.iommufd = Some(Arc::clone(iommufd));
        }
        Some(taken)
    }

    fn things(&self) -> MutexGuard<'_, Things> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HandedDevice {
    fn take(&mut self, iommufd: &Iommufd, kvm: Option<Arc<DeviceFd>>) -> io::Result<Cdev> {
        let file = self.file.try_clone()?;
        if self.bound {
            let device = Cdev::bound(file, kvm)?;
            device.reset();
            return Ok(device);
        }
        drop(Cdev::bind(self.file.try_clone()?, iommufd, None)?);
        self.bound = true;
        Cdev::bound(file, kvm)
    }
}

/// The function that a device's file is of.
fn function_of(sysfs: &Sysfs, file: &File) -> Result<Sbdf, HandedError> {
    let about = file.metadata().map_err(HandedError::NoDevice)?;
    if !about.file_type().is_char_device() {
        let text = "it is no character device";
        return Err(HandedError::NoDevice(io::Error::other(text)));
    }
    let numbers = (libc::major(about.rdev()), libc::minor(about.rdev()));
    function_with(sysfs, numbers)
}

/// `dev/char/MAJOR:MINOR` leads to `vfio-dev/vfioN` below the function's directory.
fn function_with(sysfs: &Sysfs, (major, minor): (u32, u32)) -> Result<Sbdf, HandedError> {
    let link = sysfs.root().join(format!("dev/char/{major}:{minor}"));
    let directory = fs::canonicalize(link).map_err(HandedError::NoDevice)?;
    let class = directory.parent();
    let function = class
        .filter(|class| class.ends_with("vfio-dev"))
        .and_then(Path::parent);
    let Some(function) = function else {
        let text = format!("it is {}", directory.display());
        return Err(HandedError::NoDevice(io::Error::other(text)));
    };
    Ok(sysfs.resolve(function)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_devices_numbers_lead_to_its_function() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let function = root.join("devices/pci0000:00/0000:03:00.0");
        fs::create_dir_all(function.join("vfio-dev/vfio0")).unwrap();
        fs::create_dir_all(root.join("devices/virtual/vfio/5")).unwrap();
        for place in ["dev/char", "bus/pci/devices"] {
            fs::create_dir_all(root.join(place)).unwrap();
        }
        let link = |to: &Path, name: &str| symlink(to, root.join(name)).unwrap();
        link(&function, "bus/pci/devices/0000:03:00.0");
        link(&function.join("vfio-dev/vfio0"), "dev/char/511:0");
        link(&root.join("devices/virtual/vfio/5"), "dev/char/244:1");
        let sysfs = Sysfs::new(root);
        let found = function_with(&sysfs, (511, 0)).unwrap();
        assert_eq!(found, "0000:03:00.0".parse().unwrap());
        let group = function_with(&sysfs, (244, 1)).unwrap_err().to_string();
        assert!(group.contains("it is "), "{group}");
        assert!(function_with(&sysfs, (1, 1)).is_err());
    }

    #[test]
    fn what_is_no_device_is_not_taken() {
        let handed = Handed::default();
        for path in ["/dev/null", "/proc/self/exe"] {
            let file = File::open(path).unwrap();
            let error = handed.take(file.into()).unwrap_err();
            assert!(matches!(error, HandedError::NoDevice(_)), "{path}: {error}");
        }
        assert!(handed.things().devices.is_empty());
    }
}
