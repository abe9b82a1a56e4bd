//! All assigned devices of one VM: the check, the IOMMU contexts, the guest's PCI tree and the open devices.
//!
//! ```text
//! plan ──▶ open ──▶ attach ──▶ add, remove, accesses of the guest, events
//! check    contexts  memory mapped, resources assigned,
//!          devices   devices plugged
//! ```
//! Devices at boot and a device that is added later take the same steps. A step that fails undoes the earlier ones:
//! descriptors, mappings and claims are values that are dropped with the attempt.

mod add;
mod contexts;
mod error;
mod events;
mod members;
mod open;
mod plan;
mod plug;
mod remove;
mod resources;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use guest_topology::{Apertures, Slot};
use iommu_group::assignment::DomainName;
use iommu_group::{AddressRange, Gpa, Sbdf};
use kvm_ioctls::VmFd;

use crate::bus::{PciError, SharedFunction};
use crate::claims::Claims;
use crate::descriptors::DescriptorLimit;
use crate::host_iommu::Interface;
use crate::lock::lock;
use crate::memory::HostMemory;
use crate::preopened::PreopenedDevices;
use crate::vmm::{IntxLine, MemorySlots, MsiRouter};

pub use add::Added;
pub use error::DeviceSetError;
pub use members::{MemberView, SetEvent, SetEventKind};
use members::{Members, Watch};
pub use open::{OpenDevices, SpaceDemands};
pub use plan::DevicePlan;
use plug::Guest;
pub use remove::Ejected;

/// A device that a VM is to have.
#[derive(Clone, Debug)]
pub struct DeviceRequest {
    /// The VMM's name of the device, unique in the set.
    pub tag: String,
    /// Its directory in sysfs, or any alias of it.
    pub path: PathBuf,
    /// The P2P domain that it joins; `None` for a device without peers.
    pub domain: Option<DomainName>,
    /// Functions whose exposure the request accepts.
    pub expose: BTreeSet<Sbdf>,
}

/// How devices are opened.
#[derive(Clone)]
pub struct IommuOptions {
    /// Only this interface; `None` for iommufd if the kernel and all devices support it, and type1 otherwise.
    pub interface: Option<Interface>,
    /// The VM, which KVM tells about its VFIO groups (linux Documentation/virt/kvm/devices/vfio.rst).
    pub kvm: Option<Arc<VmFd>>,
    /// Devices that were passed as open descriptors. They are not opened again.
    pub preopened: Arc<PreopenedDevices>,
    /// Whether devices may be added later. If so, P2P domains reserve bus numbers and address space for them.
    pub hotplug: bool,
}

/// The guest's address space.
#[derive(Clone, Debug)]
pub struct GuestSpace {
    /// Guest memory, which all devices reach.
    pub memory: Vec<(Gpa, HostMemory)>,
    /// Address ranges for BARs without fixed addresses.
    pub apertures: Apertures,
    /// All addresses that the host bridge forwards, windows at fixed addresses included.
    pub forwarded: Vec<AddressRange<Gpa>>,
}

/// What the VMM provides to all devices.
#[derive(Clone)]
pub struct VmHooks {
    /// Memory slots for BARs.
    pub slots: Arc<dyn MemorySlots>,
    /// Routes of message-signalled interrupts.
    pub msi: Arc<dyn MsiRouter>,
    /// The interrupt line of INTA of a device below the port in a slot; `None` for guests without interrupt lines.
    pub intx: Option<IntxLines>,
    /// Limit of the descriptors for interrupt vectors, because the guest decides how many it enables.
    pub vector_fds: DescriptorLimit,
    /// Limit of the descriptors for devices that are added.
    pub device_fds: DescriptorLimit,
}

/// The interrupt lines of slots.
pub type IntxLines = Arc<dyn Fn(Slot) -> Arc<dyn IntxLine> + Send + Sync>;

/// The assigned devices of a VM, and the virtual ports above them.
///
/// # Threads and locks
/// Every method takes `&self`. vCPU threads call the methods for accesses of the guest and [`eject`](Self::eject);
/// these never wait for an addition or a removal. Another thread calls the rest.
///
/// Locks are taken in this order, and none is held across a wait for the guest: the list of members; the bus; one device
/// or port; the claims, the table of a domain's BARs, the IOMMU context. The VMM's [`MemorySlots`], [`MsiRouter`] and
/// [`IntxLine`] are called with a device locked, so they must not call the set.
pub struct DeviceSet {
    guest: Guest,
    watch: Watch,
    members: Mutex<Members>,
    ejected: Mutex<remove::Parked>,
}

impl DeviceSet {
    /// Adds a function of the VMM at `sbdf`, such as the host bridge.
    ///
    /// # Errors
    /// [`PciError`] if the address is in use or no bridge leads to its bus.
    pub fn add_function(&self, sbdf: Sbdf, function: SharedFunction) -> Result<(), PciError> {
        self.guest.bus.add(sbdf, function)
    }

    /// The ranges at which devices answer. A VMM whose own devices share the address space claims theirs here.
    pub fn claims(&self) -> &Arc<Claims> {
        &self.guest.claims
    }

    /// Reads configuration space; all ones if there is no function. The access stays inside the 4096 bytes.
    pub fn config_read(&self, sbdf: Sbdf, offset: u16, data: &mut [u8]) {
        self.guest.bus.config_read(sbdf, offset, data);
    }

    /// Writes configuration space; ignored if there is no function. The access stays inside the 4096 bytes.
    pub fn config_write(&self, sbdf: Sbdf, offset: u16, data: &[u8]) {
        self.guest.bus.config_write(sbdf, offset, data);
    }

    /// Reads from the BAR at `gpa`. Returns whether there is one; otherwise `data` is all ones.
    pub fn mmio_read(&self, gpa: Gpa, data: &mut [u8]) -> bool {
        self.guest.bus.mmio_read(gpa, data)
    }

    /// Writes to the BAR at `gpa`. Returns whether there is one.
    pub fn mmio_write(&self, gpa: Gpa, data: &[u8]) -> bool {
        self.guest.bus.mmio_write(gpa, data)
    }

    /// Handles a memory fault of the hypervisor at `gpa`: a BAR that lost its memory is unmapped. Returns whether a BAR
    /// is there.
    pub fn memory_fault(&self, gpa: Gpa) -> bool {
        self.guest.bus.memory_fault(gpa)
    }

    /// Guest memory.
    pub fn memory(&self) -> Vec<AddressRange<Gpa>> {
        lock(&self.members).memory_ranges().collect()
    }

    /// Maps a region of guest memory that is added to the VM, for all devices or for none.
    ///
    /// # Errors
    /// [`DeviceSetError::Untranslated`] and [`DeviceSetError::Refused`] if a device would not reach it;
    /// [`DeviceSetError::Context`] from the kernel. Nothing is mapped then.
    pub fn map_region(&self, gpa: Gpa, memory: HostMemory) -> Result<(), DeviceSetError> {
        lock(&self.members).map_region(gpa, memory)
    }

    /// Unmaps the region of guest memory that begins at `gpa`, before it is taken from the VM. A region that no device
    /// reaches is ignored.
    ///
    /// # Errors
    /// [`DeviceSetError::Context`] if a device can still reach it: the caller keeps the memory, and may try again.
    pub fn unmap_region(&self, gpa: Gpa) -> Result<(), DeviceSetError> {
        lock(&self.members).unmap_region(gpa)
    }
}

impl VmHooks {
    /// Checks that there are descriptors for one more device.
    fn check_room(&self, sbdf: Sbdf) -> Result<(), DeviceSetError> {
        let free: io::Result<()> = self.device_fds.eventfd().map(drop);
        free.map_err(|error| DeviceSetError::Descriptors { sbdf, error })
    }
}
