//! A VFIO group: an IOMMU group that this process owns.

#![allow(unsafe_code, reason = "VFIO group ioctls")]

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::sync::Arc;

use iommu_group::{GroupId, Sbdf};
use kvm_ioctls::DeviceFd;
use vfio_bindings::bindings::vfio::{VFIO_GROUP_FLAGS_VIABLE, vfio_group_status};
use vmm_sys_util::ioctl::{ioctl, ioctl_with_mut_ref, ioctl_with_ptr, ioctl_with_ref};

use super::container::Container;
use super::kvm::KvmFile;
use super::{argsz, check, vfio_ioctl};

const GET_STATUS: libc::c_ulong = vfio_ioctl(3);
const SET_CONTAINER: libc::c_ulong = vfio_ioctl(4);
const UNSET_CONTAINER: libc::c_ulong = vfio_ioctl(5);
const GET_DEVICE_FD: libc::c_ulong = vfio_ioctl(6);

/// A group in a container. It leaves KVM and the container when the last of its devices is closed.
pub(super) struct Group {
    file: File,
    id: GroupId,
    _container: Arc<Container>,
    kvm: Option<KvmFile>,
}

impl Group {
    /// Opens a group, adds it to `container` and registers it with KVM.
    pub(super) fn join(
        id: GroupId,
        container: Arc<Container>,
        kvm: Option<Arc<DeviceFd>>,
    ) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(format!("/dev/vfio/{id}"))?;
        let mut status = vfio_group_status {
            argsz: argsz::<vfio_group_status>(),
            flags: 0,
        };
        // SAFETY: the structure is complete.
        check(unsafe { ioctl_with_mut_ref(&file, GET_STATUS, &mut status) })?;
        if status.flags & VFIO_GROUP_FLAGS_VIABLE == 0 {
            let text = format!("IOMMU group {id} has a device that a host driver uses");
            return Err(io::Error::other(text));
        }
        let descriptor: RawFd = container.as_raw_fd();
        // SAFETY: the argument is a descriptor that is open during the call.
        check(unsafe { ioctl_with_ref(&file, SET_CONTAINER, &descriptor) })?;
        let mut group = Self {
            file,
            id,
            _container: container,
            kvm: None,
        };
        // From here on, dropping the group removes it from the container.
        if let Some(kvm) = kvm {
            group.kvm = Some(KvmFile::add(kvm, &group.file)?);
        }
        Ok(group)
    }

    /// Opens a device of the group. The IOMMU driver of the container must be set.
    pub(super) fn open_device(&self, sbdf: Sbdf) -> io::Result<File> {
        let name = CString::new(sbdf.to_string())?;
        // SAFETY: the argument is a C string that lives through the call.
        let fd = check(unsafe { ioctl_with_ptr(&self.file, GET_DEVICE_FD, name.as_ptr()) })?;
        // SAFETY: the kernel created this descriptor for this call and nothing else owns it.
        Ok(unsafe { File::from_raw_fd(fd) })
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // KVM first: it queries the group, which must still be in its container.
        self.kvm = None;
        // SAFETY: the ioctl has no argument.
        if let Err(error) = check(unsafe { ioctl(&self.file, UNSET_CONTAINER) }) {
            log::warn!(
                "cannot take IOMMU group {} out of its container: {error}",
                self.id
            );
        }
    }
}
