//! A PCI function opened through VFIO.

#![allow(
    unsafe_code,
    reason = "VFIO_DEVICE_RESET, and one descriptor shared with vfio-ioctls"
)]

use std::fs::{self, File};
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use vfio_bindings::bindings::vfio::{
    VFIO_PCI_MSI_IRQ_INDEX, VFIO_PCI_MSIX_IRQ_INDEX, VFIO_REGION_INFO_FLAG_MMAP,
};
use vfio_ioctls::{VfioDevice, VfioRegionInfoCap};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::ioctl::ioctl;
use vmm_sys_util::ioctl_io_nr;

use crate::pci::{Mappable, PciBackend, Region, RegionInfo, VectorKind};

use super::{BarMapping, Type1Container, io_error};

ioctl_io_nr!(VFIO_DEVICE_RESET, 0x3b, 111);

/// The open device. Its group stays in the container for as long as this lives.
pub(crate) struct VfioPci {
    device: ManuallyDrop<VfioDevice>,
    /// The same descriptor as a file, never closed by itself: vfio-ioctls swallows the errors of
    /// reads and writes.
    file: ManuallyDrop<File>,
    sysfs: PathBuf,
    group_link: PathBuf,
    /// The IOMMU context outlives the device.
    _context: Arc<Type1Container>,
}

impl VfioPci {
    /// Opens the function at `sysfs`, which puts its group into `context`.
    ///
    /// # Errors
    /// The errno of opening or joining the group (`EBUSY`: in use elsewhere, `EPERM`: a neighbour
    /// in the group has a host driver) or of opening the device.
    pub(crate) fn open(context: Arc<Type1Container>, sysfs: &Path) -> io::Result<Self> {
        let group_link = fs::read_link(sysfs.join("iommu_group"))?;
        let device =
            VfioDevice::new(sysfs, context.container().clone(), false).map_err(io_error)?;
        // SAFETY: the descriptor belongs to `device`, which lives as long as `file` does.
        let file = unsafe { File::from_raw_fd(device.as_raw_fd()) };
        Ok(Self {
            device: ManuallyDrop::new(device),
            file: ManuallyDrop::new(file),
            sysfs: sysfs.to_owned(),
            group_link,
            _context: context,
        })
    }

    fn bounds(&self, region: Region, offset: u64, len_bytes: usize) -> io::Result<u64> {
        let index = region.index();
        let size_bytes = self.device.get_region_size(index);
        let end = offset.checked_add(len_bytes as u64);
        if end.is_none_or(|end| end > size_bytes) {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        Ok(self.device.get_region_offset(index) + offset)
    }
}

fn irq_index(kind: VectorKind) -> u32 {
    match kind {
        VectorKind::Msi => VFIO_PCI_MSI_IRQ_INDEX,
        VectorKind::Msix => VFIO_PCI_MSIX_IRQ_INDEX,
    }
}

impl PciBackend for VfioPci {
    fn region(&self, region: Region) -> RegionInfo {
        let index = region.index();
        let size_bytes = self.device.get_region_size(index);
        let mut sparse = None;
        let mut msix_mappable = false;
        for capability in self.device.get_region_caps(index) {
            match capability {
                VfioRegionInfoCap::SparseMmap(areas) => {
                    let areas = areas.areas.iter().map(|a| (a.offset, a.size));
                    sparse = Some(areas.collect());
                }
                VfioRegionInfoCap::MsixMappable => msix_mappable = true,
                VfioRegionInfoCap::Type(_)
                | VfioRegionInfoCap::Nvlink2Lnkspd(_)
                | VfioRegionInfoCap::Nvlink2Ssatgt(_) => {}
            }
        }
        let may_map = self.device.get_region_flags(index) & VFIO_REGION_INFO_FLAG_MMAP != 0;
        let mappable = match (may_map, sparse) {
            (false, _) => Mappable::Nothing,
            (true, Some(areas)) => Mappable::Areas(areas),
            (true, None) if msix_mappable => Mappable::Whole,
            (true, None) => Mappable::AllButMsix,
        };
        RegionInfo {
            size_bytes,
            mappable,
        }
    }

    fn read(&self, region: Region, offset: u64, data: &mut [u8]) -> io::Result<()> {
        let at = self.bounds(region, offset, data.len())?;
        self.file.read_exact_at(data, at)
    }

    fn write(&self, region: Region, offset: u64, data: &[u8]) -> io::Result<()> {
        let at = self.bounds(region, offset, data.len())?;
        self.file.write_all_at(data, at)
    }

    fn map(&self, region: Region, offset: u64, len_bytes: usize) -> io::Result<BarMapping> {
        let at = self.bounds(region, offset, len_bytes)?;
        BarMapping::new(self.file.as_fd(), at, len_bytes)
    }

    fn vectors(&self, kind: VectorKind) -> u32 {
        let info = self.device.get_irq_info(irq_index(kind));
        info.map_or(0, |irq| irq.count)
    }

    fn enable_vectors(&self, kind: VectorKind, events: &[&EventFd]) -> io::Result<()> {
        let events = events.to_vec();
        self.device
            .enable_irq(irq_index(kind), events)
            .map_err(io_error)
    }

    fn disable_vectors(&self, kind: VectorKind) -> io::Result<()> {
        self.device.disable_irq(irq_index(kind)).map_err(io_error)
    }

    fn reset(&self) -> io::Result<()> {
        // SAFETY: the ioctl takes no argument and the descriptor is open.
        match unsafe { ioctl(&*self.file, VFIO_DEVICE_RESET()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for VfioPci {
    fn drop(&mut self) {
        // vfio-ioctls reads the group link again when a device is dropped and panics if it is gone
        // or names another group: a device that was unplugged or regrouped under us.
        let same_group =
            fs::read_link(self.sysfs.join("iommu_group")).is_ok_and(|link| link == self.group_link);
        if same_group {
            // SAFETY: dropped once, here; it closes the descriptor, which `file` does not.
            unsafe { ManuallyDrop::drop(&mut self.device) };
        } else {
            log::warn!(
                "{}: vanished or regrouped while assigned; its group stays with the container",
                self.sysfs.display()
            );
            // SAFETY: dropped once, here; `device` is never dropped on this path, so nothing else
            // closes the descriptor.
            unsafe { ManuallyDrop::drop(&mut self.file) };
        }
    }
}
