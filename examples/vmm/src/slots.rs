//! KVM's memory slots.
#![allow(unsafe_code, reason = "KVM takes host addresses")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use iommu_group::{Address, AddressRange, Gpa};
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, MemoryRegionAddress};

use crate::Result;

/// The memory slots of a VM, by number.
#[derive(Clone)]
pub struct Slots {
    vm: Arc<VmFd>,
    used: Arc<Mutex<BTreeMap<u32, AddressRange<Gpa>>>>,
}

impl Slots {
    pub(crate) fn new(vm: Arc<VmFd>) -> Self {
        Self {
            vm,
            used: Arc::default(),
        }
    }

    pub(crate) fn add_memory(&self, memory: &GuestMemoryMmap) -> Result<()> {
        for region in memory.iter() {
            let range = AddressRange::new(Gpa::new(region.start_addr().0), region.len());
            let host = region.get_host_address(MemoryRegionAddress(0))?;
            // SAFETY: the VM owns its memory, and the memory has this length.
            unsafe { self.add(range.ok_or("guest memory is empty")?, host) }?;
        }
        Ok(())
    }

    /// Shows the guest the memory of this process from `host` on.
    ///
    /// # Errors
    /// KVM refuses, for instance because the range overlaps that of another slot.
    ///
    /// # Safety
    /// The memory stays mapped until the range is [removed](Self::remove) or the VM ends, and this process makes no
    /// references into it.
    pub unsafe fn add(&self, range: AddressRange<Gpa>, host: *mut u8) -> Result<()> {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = (0..).find(|slot| !used.contains_key(slot)).unwrap_or(0);
        // SAFETY: the caller keeps the memory.
        unsafe { self.set(slot, range, host, range.len_bytes()) }?;
        used.insert(slot, range);
        Ok(())
    }

    /// Removes the slot that was added with this range.
    ///
    /// # Errors
    /// There is no such slot, or KVM refuses.
    pub fn remove(&self, range: AddressRange<Gpa>) -> Result<()> {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = used.iter().find(|(_, known)| **known == range);
        let slot = *slot.ok_or("there is no such memory slot")?.0;
        // SAFETY: a size of 0 removes the slot, so KVM gets no memory.
        unsafe { self.set(slot, range, std::ptr::null_mut(), 0) }?;
        used.remove(&slot);
        Ok(())
    }

    unsafe fn set(
        &self,
        slot: u32,
        range: AddressRange<Gpa>,
        host: *mut u8,
        len_bytes: u64,
    ) -> Result<()> {
        let region = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: range.start().value(),
            memory_size: len_bytes,
            userspace_addr: host as u64,
        };
        // SAFETY: the caller keeps the memory.
        unsafe { self.vm.set_user_memory_region(region) }?;
        Ok(())
    }
}
