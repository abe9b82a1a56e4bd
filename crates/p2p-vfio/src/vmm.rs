//! What a VMM provides to its assigned devices.

use std::io;

use iommu_group::{AddressRange, Gpa, Sbdf};
use vmm_sys_util::eventfd::EventFd;

use crate::device::DeviceEvent;
use crate::memory::HostMemory;

/// Number of a memory slot, chosen by the VMM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotId(pub u32);

/// The VMM's table of guest-visible memory (KVM: `KVM_SET_USER_MEMORY_REGION`), and of the
/// addresses at which a device answers.
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

    /// Makes one device the only one that answers in `range`. It may be shorter than a page, and a
    /// device shows memory only in ranges that it has claimed.
    ///
    /// # Errors
    /// `EEXIST` where another device has claimed, or guest memory is.
    fn claim(&self, range: AddressRange<Gpa>) -> io::Result<()>;

    /// Gives up a range that was claimed as such.
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
    /// The errno of the hypervisor; the route is as before then.
    fn disconnect(&self, route: RouteId, event: &EventFd) -> io::Result<()>;
}

/// The interrupt line that pin INTA of one device leads to (KVM: an irqfd with a resample fd on a pin
/// of the I/O APIC). Devices may share it.
pub trait IntxLine: Send + Sync {
    /// From now on a signal on `raised` asserts the line, and `handled` is signalled when the guest
    /// has ended the interrupt and the line was let go.
    ///
    /// # Errors
    /// The errno of the hypervisor; nothing stays behind then.
    fn connect(&self, raised: &EventFd, handled: &EventFd) -> io::Result<()>;

    /// Ends that; the line is not asserted by this device any more.
    ///
    /// # Errors
    /// The errno of the hypervisor; the line is as before then.
    fn disconnect(&self, raised: &EventFd, handled: &EventFd) -> io::Result<()>;
}

/// Where a VMM learns what happens to its devices without its doing.
///
/// It is called with the device busy: implementations note or forward the event and return; they do
/// not call the device.
pub trait EventSink: Send + Sync {
    /// Something happened to the device that is `sbdf` on the host.
    fn device_event(&self, sbdf: Sbdf, event: DeviceEvent);
}
