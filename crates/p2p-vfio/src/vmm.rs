//! Interfaces that a VMM implements for its assigned devices.

use std::io;

use iommu_group::{AddressRange, Gpa, Sbdf};
use vmm_sys_util::eventfd::EventFd;

use crate::device::DeviceEvent;
use crate::memory::HostMemory;

/// Number of a memory slot, chosen by the VMM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotId(pub u32);

/// The VMM's table of guest-visible memory (KVM: `KVM_SET_USER_MEMORY_REGION`).
pub trait MemorySlots: Send + Sync {
    /// Maps `memory` into the guest at `gpa`. The implementation keeps `memory` until the slot is removed.
    ///
    /// # Errors
    /// The errno of the hypervisor, such as `EEXIST` if another slot overlaps.
    fn add(&self, gpa: Gpa, memory: HostMemory) -> io::Result<SlotId>;

    /// Removes a slot: guest accesses trap from now on.
    ///
    /// # Errors
    /// The errno of the hypervisor; `ENOENT` if the slot does not exist.
    fn remove(&self, slot: SlotId) -> io::Result<()>;
}

/// The ranges of guest-physical addresses at which devices answer. [`Claims`](crate::Claims) is an implementation.
pub trait AddressClaims: Send + Sync {
    /// Claims `range` for one device: no other device answers there. The range may be shorter than a page. A device
    /// maps memory only in ranges that it has claimed.
    ///
    /// # Errors
    /// `EEXIST` if another device has claimed part of the range.
    fn claim(&self, range: AddressRange<Gpa>) -> io::Result<()>;

    /// Releases a range that was claimed with the same bounds.
    fn release(&self, range: AddressRange<Gpa>);
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

/// Routes from an eventfd to an interrupt in the guest (KVM: irqfd and MSI routes).
pub trait MsiRouter: Send + Sync {
    /// Adds a route: a signal on `event`, including one that is already pending, delivers `message` in the guest.
    ///
    /// # Errors
    /// The errno of the hypervisor; no route is left then.
    fn connect(&self, event: &EventFd, message: MsiMessage) -> io::Result<RouteId>;

    /// Changes the message of a route.
    ///
    /// # Errors
    /// The errno of the hypervisor; the route is unchanged then.
    fn update(&self, route: RouteId, message: MsiMessage) -> io::Result<()>;

    /// Removes a route: signals stay pending on `event`.
    ///
    /// # Errors
    /// The errno of the hypervisor; the route is unchanged then.
    fn disconnect(&self, route: RouteId, event: &EventFd) -> io::Result<()>;
}

/// The interrupt line to which pin INTA of one device is connected (KVM: an irqfd with a resample fd on a pin of the
/// I/O APIC). Devices may share it.
pub trait IntxLine: Send + Sync {
    /// Connects the device: a signal on `raised` asserts the line, and `handled` is signalled when the guest has ended
    /// the interrupt and the line is deasserted.
    ///
    /// # Errors
    /// The errno of the hypervisor; nothing is connected then.
    fn connect(&self, raised: &EventFd, handled: &EventFd) -> io::Result<()>;

    /// Disconnects the device, which does not assert the line any more.
    ///
    /// # Errors
    /// The errno of the hypervisor; the line is unchanged then.
    fn disconnect(&self, raised: &EventFd, handled: &EventFd) -> io::Result<()>;
}

/// Receives device events that the VMM did not cause.
///
/// The device is busy during the call: an implementation records or forwards the event and returns. It must not call
/// the device.
pub trait EventSink: Send + Sync {
    /// Receives an event of the device with the host address `sbdf`.
    fn device_event(&self, sbdf: Sbdf, event: DeviceEvent);
}
