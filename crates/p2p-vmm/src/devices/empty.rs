//! A set without devices, for tests.

use std::io;
use std::sync::Arc;

use guest_topology::Apertures;
use iommu_group::assignment::HostSnapshot;
use iommu_group::policy::Policy;
use iommu_group::{Gpa, Host, Sysfs, Topology};
use p2p_vfio::{
    DescriptorLimit, DeviceSet, GuestSpace, HostMemory, IommuOptions, MemorySlots, MsiMessage,
    MsiRouter, RouteId, SlotId, VmHooks,
};
use vmm_sys_util::eventfd::EventFd;

/// Refuses everything.
struct Nothing;

fn refused() -> io::Error {
    io::ErrorKind::Unsupported.into()
}

impl MemorySlots for Nothing {
    fn add(&self, _gpa: Gpa, _memory: HostMemory) -> io::Result<SlotId> {
        Err(refused())
    }

    fn remove(&self, _slot: SlotId) -> io::Result<()> {
        Err(refused())
    }
}

impl MsiRouter for Nothing {
    fn connect(&self, _event: &EventFd, _message: MsiMessage) -> io::Result<RouteId> {
        Err(refused())
    }

    fn update(&self, _route: RouteId, _message: MsiMessage) -> io::Result<()> {
        Err(refused())
    }

    fn disconnect(&self, _route: RouteId, _event: &EventFd) -> io::Result<()> {
        Err(refused())
    }
}

/// A set without devices.
pub(crate) fn empty_set() -> DeviceSet {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("bus/pci/devices")).unwrap();
    let topology = Topology::scan(&Sysfs::new(dir.path()), Host::default()).unwrap();
    let host = HostSnapshot::new(topology, Policy::default());
    let options = IommuOptions {
        interface: None,
        kvm: None,
        preopened: Arc::default(),
        hotplug: false,
    };
    let space = GuestSpace {
        memory: Vec::new(),
        apertures: Apertures {
            memory: Vec::new(),
            prefetchable: Vec::new(),
        },
        forwarded: Vec::new(),
    };
    let hooks = VmHooks {
        slots: Arc::new(Nothing),
        msi: Arc::new(Nothing),
        intx: None,
        vector_fds: DescriptorLimit::NONE,
        device_fds: DescriptorLimit::NONE,
    };
    let open = DeviceSet::plan(host, &[]).unwrap().open(options).unwrap();
    open.attach(space, hooks).unwrap()
}
