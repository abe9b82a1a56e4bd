//! What a VMM provides to its assigned devices.

use std::io;

use vmm_sys_util::eventfd::EventFd;

use crate::address::Gpa;
use crate::memory::HostMemory;

/// Number of a memory slot, chosen by the VMM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotId(pub u32);

/// The VMM's table of guest-visible memory (KVM: `KVM_SET_USER_MEMORY_REGION`).
pub trait MemorySlots: Send + Sync {
    /// Shows `memory` to the guest at `gpa`. The implementation keeps `memory` until the slot is
    /// removed.
    ///
    /// # Errors
    /// The errno of the hypervisor, such as `EEXIST` where another slot overlaps.
    fn add(&self, gpa: Gpa, memory: HostMemory) -> io::Result<SlotId>;

    /// Takes a slot away again: accesses trap from now on.
    ///
    /// # Errors
    /// The errno of the hypervisor, `ENOENT` for a slot that is not there.
    fn remove(&self, slot: SlotId) -> io::Result<()>;
}

/// Address and data that a message-signalled interrupt writes (PCIe r6.0 §6.1.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MsiMessage {
    /// Message address.
    pub address: u64,
    /// Message data.
    pub data: u32,
}

/// Number of an interrupt route, chosen by the VMM (KVM: a GSI).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteId(pub u32);

/// The VMM's way from an eventfd to an interrupt in the guest (KVM: irqfd and MSI routes).
pub trait MsiRouter: Send + Sync {
    /// From now on a signal on `event` delivers `message` in the guest; so does one that was
    /// pending.
    ///
    /// # Errors
    /// The errno of the hypervisor; nothing stays behind then.
    fn connect(&self, event: &EventFd, message: MsiMessage) -> io::Result<RouteId>;

    /// Changes what the route delivers.
    ///
    /// # Errors
    /// The errno of the hypervisor; the route is as before then.
    fn update(&self, route: RouteId, message: MsiMessage) -> io::Result<()>;

    /// Ends delivery: signals stay pending on `event`.
    ///
    /// # Errors
    /// The errno of the hypervisor.
    fn disconnect(&self, route: RouteId, event: &EventFd) -> io::Result<()>;
}
