//! Registration of devices with KVM.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use kvm_bindings::{
    KVM_DEV_VFIO_FILE, KVM_DEV_VFIO_FILE_ADD, KVM_DEV_VFIO_FILE_DEL, kvm_device_attr,
};
use kvm_ioctls::DeviceFd;

/// A VFIO group or device that is registered with KVM until this is dropped. What KVM allows the guest depends on
/// whether the DMA of the device is cache-coherent (linux virt/kvm/vfio.c).
pub(super) struct KvmFile {
    kvm: Arc<DeviceFd>,
    /// A clone of the owner's descriptor for the same open file: KVM compares open files when it removes one.
    file: File,
}

impl KvmFile {
    /// Registers a group, or a device that is not bound yet, with the KVM-VFIO device.
    pub(super) fn add(kvm: Arc<DeviceFd>, file: &File) -> io::Result<Self> {
        let file = file.try_clone()?;
        tell(&kvm, &file, KVM_DEV_VFIO_FILE_ADD)?;
        Ok(Self { kvm, file })
    }
}

impl Drop for KvmFile {
    fn drop(&mut self) {
        if let Err(error) = tell(&self.kvm, &self.file, KVM_DEV_VFIO_FILE_DEL) {
            log::warn!("KVM does not forget a VFIO file: {error}");
        }
    }
}

fn tell(kvm: &DeviceFd, file: &File, change: u32) -> io::Result<()> {
    let descriptor: RawFd = file.as_raw_fd();
    let attribute = kvm_device_attr {
        group: KVM_DEV_VFIO_FILE,
        attr: u64::from(change),
        addr: (&raw const descriptor) as u64,
        flags: 0,
    };
    kvm.set_device_attr(&attribute)
        .map_err(|error| io::Error::from_raw_os_error(error.errno()))
}
