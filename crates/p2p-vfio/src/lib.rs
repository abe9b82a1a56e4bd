//! Peer-to-peer DMA between the assigned devices of one virtual machine, enforced by the IOMMU.
//!
//! A VMM
//! 1. reads the host and the requested devices ([`HostSnapshot`], [`DeviceInfo::read`]) and checks them
//!    ([`check_assignment`]). Devices of one P2P domain must be in one IOMMU group, the hardware must carry requests
//!    between them, and the operator's [`Policy`] must leave at least one BAR to share. Exposures
//!    ([`HostSnapshot::exposures`]) are refused unless the operator accepts them by name: a device that can reach a
//!    function outside of the VM without passing the IOMMU, and a device that another VM's function can reach in that
//!    way. This part is in [`iommu_group::assignment`];
//! 2. chooses one kernel interface for all devices ([`HostIommu::choose`]: iommufd or VFIO containers), and creates an
//!    [`IommuContext`] for the devices of each P2P domain ([`ContextKind::P2p`]) and one for the unshared devices
//!    ([`ContextKind::Isolated`]). A BAR is mapped only in the context of its own domain, so requests from devices
//!    outside of the domain fault in the IOMMU;
//! 3. opens each device in its context ([`HostDevice::open`]) and reads which I/O addresses the IOMMU can translate
//!    ([`IommuContext::iova_ranges`]); lays out guest memory inside these ranges, and assigns addresses to the devices
//!    and the ports above them ([`guest_topology::assign_resources`]): one virtual switch for the peers;
//! 4. maps guest memory in the contexts ([`IommuContext::map_guest`]), attaches the devices to the guest
//!    ([`AssignedDevice::new`]), places their BARs, and passes the guest's configuration and MMIO accesses to them.
//!
//! The VMM keeps its own allocators, memory slots, interrupt routes and PCI bus: see [`MemorySlots`], [`MsiRouter`] and
//! [`IntxLine`]. [`EventSink`] receives the events that the VMM did not cause, such as a device error.
//!
//! # Example: embedding in a VMM
//!
//! `examples/embed.rs`, which runs on a host with two devices bound to vfio-pci:
//!
//! ```no_run
#![doc = include_str!("../examples/embed.rs")]
//! ```
//!
//! [`HostSnapshot`]: iommu_group::assignment::HostSnapshot
//! [`HostSnapshot::exposures`]: iommu_group::assignment::HostSnapshot::exposures
//! [`DeviceInfo::read`]: iommu_group::assignment::DeviceInfo::read
//! [`check_assignment`]: iommu_group::assignment::check_assignment
//! [`ContextKind::P2p`]: iommu_group::assignment::ContextKind::P2p
//! [`ContextKind::Isolated`]: iommu_group::assignment::ContextKind::Isolated
//! [`Policy`]: iommu_group::policy::Policy

mod context;
#[cfg(any(test, feature = "contract"))]
pub mod contract;
mod descriptors;
mod device;
mod dma;
#[cfg(any(test, feature = "fuzzing"))]
#[cfg_attr(
    feature = "fuzzing",
    allow(dead_code, reason = "unit tests use more of it than fuzz targets")
)]
#[allow(clippy::unwrap_used, reason = "a fake fails by panicking")]
mod fake;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing {
    //! Assigned devices on a fake kernel, for fuzz targets.
    pub use crate::device::fuzzing::{FakeFunction, FakeHost, FakeRegisters};
}
mod host_iommu;
mod memory;
mod pci;
mod peers;
mod preopened;
mod sys;
mod vmm;

pub use context::{ContextError, IommuContext};
pub use descriptors::DescriptorLimit;
pub use device::{
    AssignedDevice, AttachError, BarMappingError, Clique, DetachError, DeviceEvent, DeviceParams,
    HostDevice,
};
pub use dma::DmaError;
pub use host_iommu::{Choice, ChoiceReason, HostIommu, Interface, IommufdError};
pub use memory::HostMemory;
pub use preopened::{PreopenedDevices, PreopenedError};
pub use vmm::{EventSink, IntxLine, MemorySlots, MsiMessage, MsiRouter, RouteId, SlotId};
