//! An IOMMU context on a container with the type1 driver: its groups and mappings.

#![allow(unsafe_code, reason = "a mapping needs memory that is kept")]

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use iommu_group::{AddressRange, GroupId, Iova};
use kvm_ioctls::DeviceFd;
use vfio_bindings::bindings::vfio::{VFIO_IOMMU_INFO_CAPS, VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE};

use crate::dma::{DmaBackend, DmaError};
use crate::memory::HostMemory;

use super::container::Container;
use super::group::Group;
use super::info::Info;
use super::{usable_ranges, vfio_ioctl};

const IOMMU_GET_INFO: libc::c_ulong = vfio_ioctl(12);

/// One container, its groups and its mappings.
pub(crate) struct Type1 {
    // Declared, and so dropped, before `mapped`: the kernel releases the pages first.
    container: Arc<Container>,
    kvm: Option<Arc<DeviceFd>>,
    groups: Mutex<BTreeMap<GroupId, Weak<Group>>>,
    mapped: Mutex<BTreeMap<AddressRange<Iova>, HostMemory>>,
}

impl Type1 {
    /// Creates a context without groups. `kvm` is the VM's KVM-VFIO device, which registers each group.
    ///
    /// # Errors
    /// The errno of opening `/dev/vfio/vfio`, or a kernel without type1 version 2.
    pub(crate) fn new(kvm: Option<Arc<DeviceFd>>) -> io::Result<Self> {
        Ok(Self {
            container: Arc::new(Container::open()?),
            kvm,
            groups: Mutex::new(BTreeMap::new()),
            mapped: Mutex::new(BTreeMap::new()),
        })
    }

    /// The group `id`. It joins the container if it is not a member yet.
    ///
    /// # Errors
    /// The errno of opening the group (`EBUSY`: another process owns it) or of joining.
    pub(super) fn join(&self, id: GroupId) -> io::Result<Arc<Group>> {
        let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        groups.retain(|_, group| group.strong_count() > 0);
        if let Some(group) = groups.get(&id).and_then(Weak::upgrade) {
            return Ok(group);
        }
        let first = groups.is_empty();
        let group = Group::join(id, Arc::clone(&self.container), self.kvm.clone())?;
        if first {
            // The driver dropped all mappings when the last group left (linux drivers/vfio/vfio_iommu_type1.c:
            // vfio_iommu_unmap_unpin_all()), but `mapped` still has those of guest memory; there are none of BARs,
            // because their devices are closed. Map them again; if that fails, the group leaves.
            self.container.set_type1()?;
            let mut mapped = self.lock_mapped();
            mapped.retain(|_, memory| memory.is_ram());
            for (range, memory) in &*mapped {
                // SAFETY: `memory` is in `mapped`, as in `map()`.
                unsafe { self.container.map(*range, memory) }?;
            }
        }
        let group = Arc::new(group);
        groups.insert(id, Arc::downgrade(&group));
        Ok(group)
    }

    /// As [`container_ranges`].
    pub(crate) fn iova_ranges(&self) -> io::Result<Vec<AddressRange<Iova>>> {
        container_ranges(&*self.container)
    }

    fn lock_mapped(&self) -> std::sync::MutexGuard<'_, BTreeMap<AddressRange<Iova>, HostMemory>> {
        self.mapped.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// I/O address ranges that can be mapped in a container, ascending, without reserved regions (MSI doorbells, RMRR) and
/// within the IOMMU's width (linux drivers/vfio/vfio_iommu_type1.c: vfio_iommu_iova_build_caps()). Call it when a group
/// has joined.
///
/// # Errors
/// The errno of `VFIO_IOMMU_GET_INFO`; `ENODATA` if the kernel reports no ranges.
pub(crate) fn container_ranges(container: &impl AsRawFd) -> io::Result<Vec<AddressRange<Iova>>> {
    // struct vfio_iommu_type1_info: argsz, flags, page sizes, cap_offset, padding.
    let info = Info::get(container, IOMMU_GET_INFO, &[0; 6])?;
    ranges(&info).ok_or(io::Error::from_raw_os_error(libc::ENODATA))
}

fn ranges(info: &Info) -> Option<Vec<AddressRange<Iova>>> {
    if info.field32(4)? & VFIO_IOMMU_INFO_CAPS == 0 {
        return None;
    }
    let at = info.capability(16, VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE)?;
    usable_ranges(info.pairs(at + 16, info.field32(at + 8)?)?)
}

impl DmaBackend for Type1 {
    fn map(&self, iova: Iova, memory: HostMemory) -> Result<AddressRange<Iova>, DmaError> {
        let len_bytes = memory.len_bytes();
        let range = AddressRange::new(iova, len_bytes as u64)
            .ok_or(DmaError::BadRange { iova, len_bytes })?;
        let mut mapped = self.lock_mapped();
        // SAFETY: `memory` is kept in `mapped` until it is unmapped or the container is closed.
        unsafe { self.container.map(range, &memory) }
            .map_err(|error| DmaError::Map { range, error })?;
        mapped.insert(range, memory);
        Ok(range)
    }

    fn unmap(&self, range: AddressRange<Iova>) -> Result<(), DmaError> {
        let mut mapped = self.lock_mapped();
        if !mapped.contains_key(&range) {
            return Err(DmaError::NotMapped(range));
        }
        self.container
            .unmap(range)
            .map_err(|error| DmaError::Unmap { range, error })?;
        mapped.remove(&range);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use iommu_group::Address;

    fn info(flags: u32, bounds: &[(u64, u64)]) -> Info {
        let mut bytes = Vec::new();
        let count = u32::try_from(bounds.len()).unwrap();
        for word in [0, flags, 0x1000, 0, 24, 0, 0x1_0001, 0, count, 0] {
            bytes.extend(u32::to_ne_bytes(word));
        }
        for (first, last) in bounds {
            bytes.extend(first.to_ne_bytes());
            bytes.extend(last.to_ne_bytes());
        }
        Info::of_bytes(bytes)
    }

    #[test]
    fn a_39_bit_iommu_with_an_msi_hole() {
        let known = [(0, 0xfedf_ffff), (0xfef0_0000, 0x7f_ffff_ffff)];
        let found = ranges(&info(2, &known)).unwrap();
        let text: Vec<_> = found.iter().map(ToString::to_string).collect();
        assert_eq!(text, ["0x0..0xfee00000", "0xfef00000..0x8000000000"]);
    }

    #[test]
    fn the_whole_space_is_a_range() {
        let found = ranges(&info(2, &[(0, u64::MAX)])).unwrap();
        assert_eq!(found[0].start(), Iova::new(0));
        assert!(found[0].len_bytes() > u64::MAX / 2);
    }

    #[test]
    fn kernels_that_tell_nothing_and_backward_ranges_are_none() {
        assert_eq!(ranges(&info(0, &[(0, 1)])), None);
        assert_eq!(ranges(&info(2, &[(2, 1)])), None);
        assert_eq!(ranges(&Info::of_bytes(vec![0; 8])), None);
    }
}
