//! KVM memory slots: the host memory behind guest-physical addresses.
#![allow(unsafe_code, reason = "KVM takes host addresses")]

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

use iommu_group::{Address, Gpa};
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use p2p_vfio::{HostMemory, MemorySlots, SlotId};

use crate::lock::lock;

/// A memory slot could not be changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SlotError {
    #[error("all {limit} KVM memory slots are in use")]
    Exhausted { limit: u32 },
    #[error("cannot map {size_bytes:#x} bytes at guest address {gpa:#x} in KVM slot {slot}")]
    Map {
        slot: u32,
        gpa: u64,
        size_bytes: usize,
        source: kvm_ioctls::Error,
    },
    #[error("cannot remove KVM slot {slot} at guest address {gpa:#x}")]
    Remove {
        slot: u32,
        gpa: u64,
        source: kvm_ioctls::Error,
    },
    #[error("KVM slot {slot} is not in use")]
    Unknown { slot: u32 },
}

/// All memory slots of a VM. The numbers of removed slots are used again.
///
/// A slot holds a reference to the memory behind it, so it never shows the guest a later mapping of this process.
#[derive(Debug)]
pub(crate) struct KvmSlots {
    // Dropped before the memory, so that the VM is gone first.
    vm: Arc<VmFd>,
    limit: u32,
    /// By number of the slot.
    used: Mutex<BTreeMap<u32, (Gpa, HostMemory)>>,
}

impl KvmSlots {
    /// The slots of `vm`. KVM allows `limit` of them.
    pub(crate) fn new(vm: Arc<VmFd>, limit: u32) -> Self {
        Self {
            vm,
            limit,
            used: Mutex::new(BTreeMap::new()),
        }
    }

    /// Maps `memory` into the guest at `gpa`.
    pub(crate) fn add(&self, gpa: Gpa, memory: HostMemory) -> Result<SlotId, SlotError> {
        let mut used = lock(&self.used);
        let slot = lowest_free(used.keys().copied(), self.limit)
            .ok_or(SlotError::Exhausted { limit: self.limit })?;
        let region = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: gpa.value(),
            memory_size: memory.len_bytes() as u64,
            userspace_addr: memory.as_ptr() as u64,
        };
        // SAFETY: `memory` is a mapping of that length. `used` keeps it until the slot is removed, and nothing in
        // this process makes references into it. KVM refuses overlapping guest ranges.
        unsafe { self.vm.set_user_memory_region(region) }.map_err(|source| SlotError::Map {
            slot,
            gpa: gpa.value(),
            size_bytes: memory.len_bytes(),
            source,
        })?;
        used.insert(slot, (gpa, memory));
        Ok(SlotId(slot))
    }

    /// Unmaps `slot` from the guest. After success KVM does not use its memory.
    pub(crate) fn remove(&self, SlotId(slot): SlotId) -> Result<(), SlotError> {
        let mut used = lock(&self.used);
        let (gpa, memory) = used.get(&slot).ok_or(SlotError::Unknown { slot })?;
        let region = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: gpa.value(),
            memory_size: 0,
            userspace_addr: memory.as_ptr() as u64,
        };
        // SAFETY: a size of zero removes the slot, so KVM gets no memory.
        unsafe { self.vm.set_user_memory_region(region) }.map_err(|source| SlotError::Remove {
            slot,
            gpa: gpa.value(),
            source,
        })?;
        used.remove(&slot);
        Ok(())
    }

    /// Number of slots in use.
    pub(crate) fn count(&self) -> usize {
        lock(&self.used).len()
    }
}

impl MemorySlots for KvmSlots {
    fn add(&self, gpa: Gpa, memory: HostMemory) -> io::Result<SlotId> {
        Ok(self.add(gpa, memory)?)
    }

    fn remove(&self, slot: SlotId) -> io::Result<()> {
        Ok(self.remove(slot)?)
    }
}

impl From<SlotError> for io::Error {
    fn from(error: SlotError) -> Self {
        let errno = match &error {
            SlotError::Map { source, .. } | SlotError::Remove { source, .. } => source.errno(),
            SlotError::Exhausted { .. } => libc::ENOSPC,
            SlotError::Unknown { .. } => libc::ENOENT,
        };
        Self::from_raw_os_error(errno)
    }
}

/// The lowest slot number below `limit` that is not among the ascending `used` ones.
fn lowest_free(used: impl Iterator<Item = u32>, limit: u32) -> Option<u32> {
    let mut candidate = 0;
    for slot in used {
        if slot != candidate {
            break;
        }
        candidate += 1;
    }
    (candidate < limit).then_some(candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn free(used: &[u32], limit: u32) -> Option<u32> {
        lowest_free(used.iter().copied(), limit)
    }

    #[test]
    fn numbers_of_removed_slots_are_used_again() {
        assert_eq!(free(&[], 4), Some(0));
        assert_eq!(free(&[0, 1], 4), Some(2));
        assert_eq!(free(&[0, 2, 3], 4), Some(1));
        assert_eq!(free(&[1, 2], 4), Some(0));
    }

    #[test]
    fn a_full_table_has_no_free_number() {
        assert_eq!(free(&[0, 1, 2, 3], 4), None);
        assert_eq!(free(&[], 0), None);
    }
}
