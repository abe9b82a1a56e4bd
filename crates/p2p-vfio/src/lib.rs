//! Peer-to-peer DMA between the assigned devices of one virtual machine, enforced by the IOMMU.
//!
//! A VMM
//! 1. plans ([`DeviceSet::plan`]): the requested devices are checked against a snapshot of the host and the operator's
//!    policy ([`iommu_group::assignment`]), and their demands on the guest's address space are known. Nothing is opened.
//!    Devices of one P2P domain must be in one IOMMU group, and the hardware must carry requests between them. Devices
//!    that can reach a function outside of the VM without passing the IOMMU, or that another VM's function can reach in
//!    that way, are refused unless the operator accepts that by name;
//! 2. opens ([`DevicePlan::open`]): one kernel interface is chosen for all devices (iommufd or VFIO containers). The
//!    devices of each P2P domain share an IOMMU context, and the others share one. A BAR is mapped only in the context of
//!    its own domain, so requests from devices outside of the domain fault in the IOMMU. The VMM lays out guest memory
//!    where the IOMMU translates ([`OpenDevices::demands`]);
//! 3. attaches ([`OpenDevices::attach`]): guest memory is mapped, addresses are assigned, and the devices are plugged
//!    into the guest's PCI tree, peers below a virtual switch;
//! 4. passes the guest's configuration and MMIO accesses and the events of the host to the [`DeviceSet`], and adds and
//!    removes devices.
//!
//! The VMM keeps its memory slots, interrupt routes and its hotplug mechanism: see [`VmHooks`].
//!
//! [`AssignedDevice`], [`IommuContext`] and [`PciBus`] are the parts of a set, for a VMM that has a PCI bus or a device
//! registry of its own.
//!
//! # Example: embedding in a VMM
//!
//! `examples/embed.rs`, which runs on a host with two devices bound to vfio-pci:
//!
//! ```no_run
#![doc = include_str!("../examples/embed.rs")]
//! ```

mod bus;
mod claims;
#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
mod context;
mod descriptors;
mod device;
mod device_set;
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

    /// Reads the resources in use on a bus, as an addition does.
    pub fn read_usage(bus: &crate::PciBus, slots: guest_topology::SlotBus) {
        drop(bus.bus_usage(slots));
    }
}
mod host_iommu;
mod lock;
mod memory;
mod pci;
mod peers;
mod preopened;
mod sys;
#[cfg(feature = "vfio-ioctls")]
mod vfio_ops;
mod vmm;

pub use bus::{PciBus, PciError, PciFunction, SharedFunction};
pub use claims::Claims;
pub use context::{ContextError, IommuContext};
pub use descriptors::DescriptorLimit;
pub use device::{
    AssignedDevice, AttachError, BarMappingError, Clique, DetachError, DeviceEvent, DeviceParams,
    HostDevice,
};
pub use device_set::{
    Added, DevicePlan, DeviceRequest, DeviceSet, DeviceSetError, Ejected, GuestSpace, IntxLines,
    IommuOptions, MemberView, OpenDevices, SetEvent, SetEventKind, SpaceDemands, VmHooks,
};
pub use dma::{DmaBackend, DmaError};
pub use host_iommu::{Choice, ChoiceReason, HostIommu, Interface, IommufdError};
pub use memory::HostMemory;
pub use peers::{PeerBars, PublishedArea};
pub use preopened::{PreopenedDevices, PreopenedError};
#[cfg(feature = "vfio-ioctls")]
pub use vfio_ops::{VfioOpsDma, container_iova_ranges};
pub use vmm::{
    AddressClaims, EventSink, IntxLine, MemorySlots, MsiMessage, MsiRouter, RouteId, SlotId,
};
