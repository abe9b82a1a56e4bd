//! Peer-to-peer DMA in a VMM whose VFIO devices are those of `p2p-vfio`: a `DeviceSet` owns them, the IOMMU contexts and
//! the guest's PCI tree. The package `example-vmm` stands for the VMM without devices.
//!
//! Usage: `embed KERNEL INITRAMFS CMDLINE /sys/bus/pci/devices/0000:03:00.0[,p2p=on]…`

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use example_vmm::{BootSource, PciFunctions, Result, Routes, Slots, Vm};
use guest_topology::{Apertures, check_memory, usable_apertures};
use iommu_group::assignment::{DomainName, HostSnapshot};
use iommu_group::policy::Policy;
use iommu_group::{AddressRange, Gpa, Sbdf};
use p2p_vfio::{
    DescriptorLimit, DeviceRequest, DeviceSet, DeviceSetError, GuestSpace, HostMemory,
    IommuOptions, MemorySlots, MsiMessage, MsiRouter, RouteId, SlotId, VmHooks,
};
use vmm_sys_util::eventfd::EventFd;

/// The request for a device, from the VMM's option `PATH[,p2p=on]`.
fn request(option: &str) -> DeviceRequest {
    let path = option.strip_suffix(",p2p=on");
    DeviceRequest {
        tag: option.to_owned(),
        path: path.unwrap_or(option).into(),
        domain: DomainName::requested(path.is_some(), None),
        expose: BTreeSet::new(),
    }
}

/// Assigns devices to the VM. Returns them with the addresses that the host bridge forwards.
fn assign(vm: &Vm, options: &[String]) -> Result<(DeviceSet, Vec<AddressRange<Gpa>>)> {
    let requests: Vec<_> = options.iter().map(|option| request(option)).collect();
    // The check. Nothing is opened before, and a refusal changes nothing.
    let plan = DeviceSet::plan(HostSnapshot::read(Policy::default())?, &requests)?;
    let demands = plan.demands()?;
    let open = plan.open(IommuOptions {
        interface: None,
        kvm: Some(vm.fd.clone()),
        preopened: Arc::default(),
        hotplug: false,
    })?;
    // Memory and BARs must be where the IOMMU translates, and where no host switch keeps requests from it.
    let translated = open.iova_ranges()?;
    check_memory(vm.ram(), &translated, &demands)?;
    let windows = usable_apertures(&vm.pci_windows()?, &translated, &demands);
    let apertures = Apertures {
        memory: windows.clone(),
        prefetchable: windows.clone(),
    };
    // Peers behind a switch that routes by bus address have their BARs there.
    let forwarded: Vec<_> = windows.into_iter().chain(demands.fixed_windows).collect();
    let space = GuestSpace {
        memory: HostMemory::of_guest(&vm.memory),
        apertures,
        forwarded: forwarded.clone(),
    };
    let hooks = VmHooks {
        slots: Arc::new(MemorySlotsOf::new(&vm.slots)),
        msi: Arc::new(MessagesOf(vm.routes.clone())),
        intx: None,
        vector_fds: DescriptorLimit::NONE,
        device_fds: DescriptorLimit::NONE,
    };
    Ok((open.attach(space, hooks)?, forwarded))
}

/// The VMM's accesses to PCI functions go to the set.
struct Functions(DeviceSet);

impl PciFunctions for Functions {
    fn config_read(&mut self, at: Sbdf, offset: u16, data: &mut [u8]) {
        self.0.config_read(at, offset, data);
    }

    fn config_write(&mut self, at: Sbdf, offset: u16, data: &[u8]) {
        self.0.config_write(at, offset, data);
    }

    fn mmio_read(&mut self, gpa: Gpa, data: &mut [u8]) {
        self.0.mmio_read(gpa, data);
    }

    fn mmio_write(&mut self, gpa: Gpa, data: &[u8]) {
        self.0.mmio_write(gpa, data);
    }
}

/// The VMM's memory slots, for BARs.
struct MemorySlotsOf {
    slots: Slots,
    /// What the guest sees, by number. The memory is kept as long as the guest sees it.
    shown: Mutex<BTreeMap<u32, (AddressRange<Gpa>, HostMemory)>>,
}

impl MemorySlotsOf {
    fn new(slots: &Slots) -> Self {
        Self {
            slots: slots.clone(),
            shown: Mutex::default(),
        }
    }

    fn shown(&self) -> MutexGuard<'_, BTreeMap<u32, (AddressRange<Gpa>, HostMemory)>> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl MemorySlots for MemorySlotsOf {
    #[allow(unsafe_code, reason = "KVM takes host addresses")]
    fn add(&self, gpa: Gpa, memory: HostMemory) -> io::Result<SlotId> {
        let mut shown = self.shown();
        let range = AddressRange::new(gpa, memory.len_bytes() as u64);
        let range = range.ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: `shown` keeps the memory until the slot is removed. This process makes no references into it.
        unsafe { self.slots.add(range, memory.as_ptr()) }.map_err(other)?;
        let slot = (0..).find(|slot| !shown.contains_key(slot)).unwrap_or(0);
        shown.insert(slot, (range, memory));
        Ok(SlotId(slot))
    }

    fn remove(&self, slot: SlotId) -> io::Result<()> {
        let mut shown = self.shown();
        let (range, _) = shown.get(&slot.0).ok_or(io::ErrorKind::NotFound)?;
        self.slots.remove(*range).map_err(other)?;
        shown.remove(&slot.0);
        Ok(())
    }
}

/// The VMM's interrupt routes, for message-signalled interrupts.
struct MessagesOf(Routes);

impl MsiRouter for MessagesOf {
    fn connect(&self, event: &EventFd, message: MsiMessage) -> io::Result<RouteId> {
        let MsiMessage { address, data } = message;
        self.0
            .connect(event, address, data)
            .map(RouteId)
            .map_err(other)
    }

    fn update(&self, route: RouteId, message: MsiMessage) -> io::Result<()> {
        let MsiMessage { address, data } = message;
        self.0.update(route.0, address, data).map_err(other)
    }

    fn disconnect(&self, route: RouteId, event: &EventFd) -> io::Result<()> {
        self.0.disconnect(event, route.0).map_err(other)
    }
}

fn other(error: Box<dyn std::error::Error>) -> io::Error {
    io::Error::other(error.to_string())
}

fn start() -> Result<()> {
    let (source, options) = BootSource::of_arguments()?;
    let vm = Vm::new()?;
    let (devices, windows) = assign(&vm, &options)?;
    // A VMM with an event loop waits for `devices.event_fd()` there, and calls `process_events`.
    vm.run(&source, &windows, &mut Functions(devices))
}

fn main() -> ExitCode {
    let Err(error) = start() else {
        return ExitCode::SUCCESS;
    };
    eprintln!("error: {error:#}");
    let refused = error.downcast_ref::<DeviceSetError>();
    ExitCode::from(if refused.is_some_and(DeviceSetError::is_refusal) {
        2
    } else {
        1
    })
}
