//! KVM memory slots: which host memory backs which guest-physical addresses.
#![allow(unsafe_code, reason = "KVM is given host addresses")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use vm_memory::GuestAddress;

use crate::lock::lock;

/// Number of a KVM memory slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Slot(u32);

/// What a slot maps.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SlotMapping {
    pub(crate) gpa: GuestAddress,
    /// Host virtual address, page aligned.
    pub(crate) host_address: u64,
    pub(crate) size_bytes: u64,
    /// Whether a write by the guest is an MMIO exit.
    pub(crate) read_only: bool,
}

/// Why a memory slot could not be changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SlotError {
    #[error("all {limit} KVM memory slots are in use")]
    Exhausted { limit: u32 },
    #[error("cannot map {size_bytes:#x} bytes at guest address {gpa:#x} in KVM slot {slot}")]
    Map {
        slot: u32,
        gpa: u64,
        size_bytes: u64,
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

/// Owner of all memory slots of a VM. Numbers of removed slots are used again.
#[derive(Debug)]
pub(crate) struct MemorySlots {
    vm: Arc<VmFd>,
    limit: u32,
    used: Mutex<BTreeMap<Slot, SlotMapping>>,
}

impl MemorySlots {
    /// The slots of `vm`, of which KVM allows `limit`.
    pub(crate) fn new(vm: Arc<VmFd>, limit: u32) -> Self {
        Self {
            vm,
            limit,
            used: Mutex::new(BTreeMap::new()),
        }
    }

    /// Gives the guest the memory that `mapping` describes.
    ///
    /// # Safety
    /// The host memory must stay mapped, and be memory that the guest may read and (unless read-only) write at any
    /// time, until the slot was removed or the VM is gone.
    pub(crate) unsafe fn add(&self, mapping: SlotMapping) -> Result<Slot, SlotError> {
        let mut used = lock(&self.used);
        let slot = lowest_free(used.keys().copied(), self.limit)
            .ok_or(SlotError::Exhausted { limit: self.limit })?;
        let region = kvm_userspace_memory_region {
            slot: slot.0,
            flags: if mapping.read_only {
                KVM_MEM_READONLY
            } else {
                0
            },
            guest_phys_addr: mapping.gpa.0,
            memory_size: mapping.size_bytes,
            userspace_addr: mapping.host_address,
        };
        // SAFETY: the caller vouches for the host memory; KVM itself refuses overlapping guest ranges.
        unsafe { self.vm.set_user_memory_region(region) }.map_err(|source| SlotError::Map {
            slot: slot.0,
            gpa: mapping.gpa.0,
            size_bytes: mapping.size_bytes,
            source,
        })?;
        used.insert(slot, mapping);
        Ok(slot)
    }

    /// Takes the memory of `slot` from the guest; on success KVM does not use it any more.
    #[expect(dead_code, reason = "RAM stays for the life of a VM; device BARs go")]
    pub(crate) fn remove(&self, slot: Slot) -> Result<(), SlotError> {
        let mut used = lock(&self.used);
        let mapping = *used.get(&slot).ok_or(SlotError::Unknown { slot: slot.0 })?;
        let region = kvm_userspace_memory_region {
            slot: slot.0,
            flags: 0,
            guest_phys_addr: mapping.gpa.0,
            memory_size: 0,
            userspace_addr: mapping.host_address,
        };
        // SAFETY: a size of zero removes the slot, so KVM is given no memory.
        unsafe { self.vm.set_user_memory_region(region) }.map_err(|source| SlotError::Remove {
            slot: slot.0,
            gpa: mapping.gpa.0,
            source,
        })?;
        used.remove(&slot);
        Ok(())
    }
}

/// The lowest slot number below `limit` that is not among the ascending `used` ones.
fn lowest_free(used: impl Iterator<Item = Slot>, limit: u32) -> Option<Slot> {
    let mut candidate = 0;
    for slot in used {
        if slot.0 != candidate {
            break;
        }
        candidate += 1;
    }
    (candidate < limit).then_some(Slot(candidate))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn free(used: &[u32], limit: u32) -> Option<Slot> {
        lowest_free(used.iter().copied().map(Slot), limit)
    }

    #[test]
    fn numbers_of_removed_slots_are_used_again() {
        assert_eq!(free(&[], 4), Some(Slot(0)));
        assert_eq!(free(&[0, 1], 4), Some(Slot(2)));
        assert_eq!(free(&[0, 2, 3], 4), Some(Slot(1)));
        assert_eq!(free(&[1, 2], 4), Some(Slot(0)));
    }

    #[test]
    fn limit_is_kept() {
        assert_eq!(free(&[0, 1, 2, 3], 4), None);
        assert_eq!(free(&[], 0), None);
    }
}
