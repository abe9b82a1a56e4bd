//! A VFIO device that is opened by its own file instead of its group.

#![allow(unsafe_code, reason = "VFIO device ioctls of iommufd")]

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use iommu_group::Sbdf;
use kvm_ioctls::DeviceFd;
use vfio_bindings::bindings::vfio::{
    vfio_device_attach_iommufd_pt, vfio_device_bind_iommufd, vfio_device_detach_iommufd_pt,
};
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref};

use super::ioas::{Ioas, Iommufd};
use super::kvm::KvmFile;
use super::vfio_pci::reset;
use super::{argsz, check, vfio_ioctl};

const BIND_IOMMUFD: libc::c_ulong = vfio_ioctl(18);
const ATTACH_IOMMUFD_PT: libc::c_ulong = vfio_ioctl(19);
const DETACH_IOMMUFD_PT: libc::c_ulong = vfio_ioctl(20);

/// The size of struct vfio_device_bind_iommufd without a token, which every kernel since linux 6.6 accepts.
const BIND_BYTES: u32 = 16;

/// A device that is bound to an iommufd: this process owns it, but it is not attached to an address space, so its DMA
/// faults.
pub(crate) struct Cdev {
    // KVM releases the device before it is closed.
    _kvm: Option<KvmFile>,
    file: File,
}

impl Cdev {
    /// The path of the device `sbdf`: `vfioN` below its directory in sysfs is `/dev/vfio/devices/vfioN`.
    ///
    /// # Errors
    /// `ENOENT` if the kernel or the device's driver provides no such file.
    pub(crate) fn find(sbdf: Sbdf) -> io::Result<PathBuf> {
        let device = format!("/sys/bus/pci/devices/{sbdf}/vfio-dev");
        let name = only_entry(Path::new(&device))?;
        let path = Path::new("/dev/vfio/devices").join(name);
        path.metadata().map(|_| path)
    }

    /// Opens the file `path` of a device. This does not take ownership of the device.
    ///
    /// # Errors
    /// The errno of opening it.
    pub(crate) fn open(path: &Path) -> io::Result<File> {
        OpenOptions::new().read(true).write(true).open(path)
    }

    /// Binds the device of this file to the iommufd, so that this process owns it. The kernel resets the function.
    ///
    /// # Errors
    /// The errno of binding it: `EBUSY` if another process owns it, or if another device of its group has a host
    /// driver.
    pub(crate) fn bind(
        file: File,
        iommufd: &Iommufd,
        kvm: Option<Arc<DeviceFd>>,
    ) -> io::Result<Self> {
        // The kernel records the VM when the device is bound.
        let kvm = kvm.map(|kvm| KvmFile::add(kvm, &file)).transpose()?;
        let mut argument = vfio_device_bind_iommufd {
            argsz: BIND_BYTES,
            iommufd: iommufd.as_raw_fd(),
            ..Default::default()
        };
        // SAFETY: the structure is complete, and at least as long as its size field.
        check(unsafe { ioctl_with_mut_ref(&file, BIND_IOMMUFD, &mut argument) })?;
        Ok(Self { _kvm: kvm, file })
    }

    /// Wraps a device that is already bound and stays bound when this is dropped. KVM is told only now: the kernel
    /// would keep a VM that it knew at the time of binding for as long as the device is bound (linux
    /// drivers/vfio/vfio_main.c: vfio_device_get_kvm_safe()).
    ///
    /// # Errors
    /// KVM refuses the device.
    pub(crate) fn bound(file: File, kvm: Option<Arc<DeviceFd>>) -> io::Result<Self> {
        let kvm = kvm.map(|kvm| KvmFile::add(kvm, &file)).transpose()?;
        Ok(Self { _kvm: kvm, file })
    }

    /// Resets the device, as binding does. A device that cannot be reset is used as it is.
    pub(crate) fn reset(&self) {
        if let Err(error) = reset(&self.file) {
            log::warn!("a device that the VM had before is not reset: {error}");
        }
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }
}

/// The name of the one entry of a directory.
fn only_entry(directory: &Path) -> io::Result<std::ffi::OsString> {
    let first = fs::read_dir(directory)?.next();
    first.ok_or(io::ErrorKind::NotFound)?.map(|e| e.file_name())
}

/// A device in a context; it is detached and closed when dropped.
pub(super) struct AttachedCdev {
    device: Cdev,
    _context: Arc<Ioas>,
}

impl AttachedCdev {
    /// Attaches the device to `context`, which translates its DMA and that of its whole IOMMU group from then on.
    ///
    /// # Errors
    /// `EINVAL` if another device of its group is attached to another context.
    pub(super) fn new(device: Cdev, context: Arc<Ioas>) -> io::Result<Self> {
        let mut argument = vfio_device_attach_iommufd_pt {
            argsz: argsz::<vfio_device_attach_iommufd_pt>(),
            pt_id: context.id().0,
            ..Default::default()
        };
        // SAFETY: the structure is complete.
        check(unsafe { ioctl_with_mut_ref(&device.file, ATTACH_IOMMUFD_PT, &mut argument) })?;
        Ok(Self {
            device,
            _context: context,
        })
    }

    pub(super) fn file(&self) -> &File {
        self.device.file()
    }
}

impl Drop for AttachedCdev {
    /// Closing the file would detach the device too, but a mapping of a BAR keeps the file open.
    fn drop(&mut self) {
        let argument = vfio_device_detach_iommufd_pt {
            argsz: argsz::<vfio_device_detach_iommufd_pt>(),
            ..Default::default()
        };
        // SAFETY: the structure is complete.
        let detached =
            check(unsafe { ioctl_with_ref(self.device.file(), DETACH_IOMMUFD_PT, &argument) });
        if let Err(error) = detached {
            log::warn!("cannot take a device out of its I/O address space: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_devices_file_is_the_entry_of_its_directory() {
        let dir = tempfile::tempdir().unwrap();
        let error = only_entry(dir.path()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        fs::create_dir(dir.path().join("vfio7")).unwrap();
        assert_eq!(only_entry(dir.path()).unwrap(), "vfio7");
        let error = only_entry(&dir.path().join("none")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
