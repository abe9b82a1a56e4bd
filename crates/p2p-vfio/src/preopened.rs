//! Devices that another process has opened and passed as descriptors, and the iommufd they are used with.
//!
//! A device's file can be bound to one iommufd once, and to no other afterwards (linux drivers/vfio/device_cdev.c:
//! vfio_df_ioctl_bind_iommufd()). This process cannot open such a file again, so the file stays open and bound from one
//! start of the VM to the next, until it is [given up](PreopenedDevices::give_up).

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use iommu_group::{Sbdf, Sysfs, SysfsError};
use kvm_ioctls::DeviceFd;
use thiserror::Error;

use crate::sys::{Cdev, Iommufd};

/// The descriptor cannot be used.
#[derive(Debug, Error)]
pub enum PreopenedError {
    /// It is not a VFIO device.
    #[error("the descriptor is not an open /dev/vfio/devices/vfioN: {0}")]
    NoDevice(io::Error),
    /// It is not an iommufd.
    #[error("the descriptor is not an open /dev/iommu: {0}")]
    IommufdError(io::Error),
    /// Its device is not a PCI function of this host.
    #[error(transparent)]
    Host(#[from] SysfsError),
    /// The VM has this device already.
    #[error("{0} came as a descriptor before")]
    Twice(Sbdf),
}

/// Devices and iommufd passed to one VM. The value outlives each start of the VM.
#[derive(Default)]
pub struct PreopenedDevices(Mutex<Things>);

#[derive(Default)]
struct Things {
    iommufd: Option<Arc<Iommufd>>,
    devices: BTreeMap<Sbdf, HandedDevice>,
}

/// A device's file, before or after it is bound.
struct HandedDevice {
    file: File,
    bound: bool,
}

impl PreopenedDevices {
    /// Sets the iommufd: an open `/dev/iommu`. Without it, this process opens its own.
    ///
    /// # Errors
    /// [`PreopenedError::IommufdError`].
    pub fn with_iommufd(self, descriptor: OwnedFd) -> Result<Self, PreopenedError> {
        let file = File::from(descriptor);
        let directory =
            directory_of(&Sysfs::default(), &file).map_err(PreopenedError::IommufdError)?;
        if !directory.ends_with("misc/iommu") {
            return Err(PreopenedError::IommufdError(other_than(&directory)));
        }
        self.things().iommufd = Some(Arc::new(Iommufd::of(file.into())));
        Ok(self)
    }

    /// Takes a device's file and returns the address of its function.
    ///
    /// # Errors
    /// [`PreopenedError`]; the descriptor is closed then.
    pub fn take(&self, descriptor: OwnedFd) -> Result<Sbdf, PreopenedError> {
        let file = File::from(descriptor);
        let sysfs = Sysfs::default();
        let sbdf = function_of(&sysfs, &file)?;
        let mut things = self.things();
        if things.devices.contains_key(&sbdf) {
            return Err(PreopenedError::Twice(sbdf));
        }
        let bound = false;
        things.devices.insert(sbdf, HandedDevice { file, bound });
        Ok(sbdf)
    }

    /// Gives up a passed device: it is closed when nothing uses it.
    pub fn give_up(&self, sbdf: Sbdf) {
        self.things().devices.remove(&sbdf);
    }

    /// Whether this device was passed as a descriptor.
    pub(crate) fn has(&self, sbdf: Sbdf) -> bool {
        self.things().devices.contains_key(&sbdf)
    }

    /// The passed iommufd, or the one that passed devices are bound to; otherwise a new one.
    pub(crate) fn iommufd(&self) -> io::Result<Arc<Iommufd>> {
        match &self.things().iommufd {
            Some(iommufd) => Ok(Arc::clone(iommufd)),
            None => Iommufd::open().map(Arc::new),
        }
    }

    /// Binds a passed device, or reuses its binding from an earlier start of the VM; `None` if the device was not
    /// passed.
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

/// The function to which a device's file belongs.
fn function_of(sysfs: &Sysfs, file: &File) -> Result<Sbdf, PreopenedError> {
    let directory = directory_of(sysfs, file).map_err(PreopenedError::NoDevice)?;
    function_at(sysfs, &directory)
}

/// The function at a sysfs directory: a device's file is `vfio-dev/vfioN` below the function's directory.
fn function_at(sysfs: &Sysfs, directory: &Path) -> Result<Sbdf, PreopenedError> {
    let class = directory.parent();
    let function = class
        .filter(|class| class.ends_with("vfio-dev"))
        .and_then(Path::parent);
    let function = function.ok_or_else(|| PreopenedError::NoDevice(other_than(directory)))?;
    Ok(sysfs.resolve(function)?)
}

/// The sysfs directory of an open device: `dev/char/MAJOR:MINOR` links to it.
fn directory_of(sysfs: &Sysfs, file: &File) -> io::Result<PathBuf> {
    let about = file.metadata()?;
    if !about.file_type().is_char_device() {
        return Err(io::Error::other("it is no character device"));
    }
    let (major, minor) = (libc::major(about.rdev()), libc::minor(about.rdev()));
    fs::canonicalize(sysfs.root().join(format!("dev/char/{major}:{minor}")))
}

fn other_than(directory: &Path) -> io::Error {
    io::Error::other(format!("it is {}", directory.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_devices_directory_leads_to_its_function() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let function = root.join("devices/pci0000:00/0000:03:00.0");
        fs::create_dir_all(function.join("vfio-dev/vfio0")).unwrap();
        fs::create_dir_all(root.join("bus/pci/devices")).unwrap();
        symlink(&function, root.join("bus/pci/devices/0000:03:00.0")).unwrap();
        let sysfs = Sysfs::new(root);
        let found = function_at(&sysfs, &function.join("vfio-dev/vfio0")).unwrap();
        assert_eq!(found, "0000:03:00.0".parse().unwrap());
        let group = function_at(&sysfs, &root.join("devices/virtual/vfio/5"));
        let error = group.unwrap_err().to_string();
        assert!(
            error.contains("it is ") && error.contains("virtual/vfio/5"),
            "{error}"
        );
    }

    #[test]
    fn what_is_no_device_is_not_taken() {
        let handed = PreopenedDevices::default();
        for path in ["/dev/null", "/proc/self/exe"] {
            let file = File::open(path).unwrap();
            let error = handed.take(file.into()).unwrap_err();
            assert!(
                matches!(error, PreopenedError::NoDevice(_)),
                "{path}: {error}"
            );
        }
        assert!(handed.things().devices.is_empty());
        let file = File::open("/dev/null").unwrap();
        let error = handed.with_iommufd(file.into()).err().unwrap();
        assert!(error.to_string().ends_with("mem/null"), "{error}");
    }
}
