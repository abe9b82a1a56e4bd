//! Peer-to-peer DMA in a VMM that has its own guest memory, address allocator, memory slots, interrupt routes and PCI
//! bus. Usage: `embed /sys/bus/pci/devices/0000:03:00.0 /sys/bus/pci/devices/0000:04:00.0`
#![allow(unsafe_code, reason = "KVM is given host addresses")]

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use guest_topology::{
    Apertures, BusResources, Demands, Reserve, Subtree, VirtualPort, assign_resources, check_memory,
};
use iommu_group::assignment::{
    AssignmentRequest, ContextKind, DeviceInfo, DomainName, HostSnapshot, check_assignment,
};
use iommu_group::policy::Policy;
use iommu_group::{Address, AddressRange, Gpa, Iova, Sbdf, Sysfs};
use kvm_bindings::{
    KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_create_device, kvm_device_type_KVM_DEV_TYPE_VFIO,
    kvm_irq_routing_entry, kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VmFd};
use p2p_vfio::{
    AssignedDevice, Clique, DescriptorLimit, DeviceEvent, DeviceParams, EventSink, HostDevice,
    HostIommu, HostMemory, IommuContext, MemorySlots, MsiMessage, MsiRouter, RouteId, SlotId,
};
use vm_allocator::{AddressAllocator, AllocPolicy, RangeInclusive};
use vm_memory::bitmap::AtomicBitmap;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

/// The VMM's guest memory, with a bitmap of dirty pages.
type Memory = GuestMemoryMmap<AtomicBitmap>;
type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The VMM's memory slots and its allocator of guest-physical addresses.
struct Slots {
    vm: Arc<VmFd>,
    used: Mutex<BTreeMap<u32, (Gpa, HostMemory)>>,
    addresses: Mutex<AddressAllocator>,
}

impl Slots {
    /// A size of 0 removes the slot.
    fn set(&self, slot: u32, gpa: Gpa, memory: &HostMemory, size: u64) -> io::Result<()> {
        let region = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: gpa.value(),
            memory_size: size,
            userspace_addr: memory.as_ptr() as u64,
        };
        // SAFETY: `used` keeps `memory`, which has this length, as long as KVM has the slot.
        let set = unsafe { self.vm.set_user_memory_region(region) };
        Ok(set?)
    }
}

impl MemorySlots for Slots {
    fn add(&self, gpa: Gpa, memory: HostMemory) -> io::Result<SlotId> {
        let mut used = lock(&self.used);
        let slot = (0..).find(|slot| !used.contains_key(slot)).unwrap_or(0);
        self.set(slot, gpa, &memory, memory.len_bytes() as u64)?;
        used.insert(slot, (gpa, memory));
        Ok(SlotId(slot))
    }

    fn remove(&self, slot: SlotId) -> io::Result<()> {
        let mut used = lock(&self.used);
        let (gpa, memory) = used.get(&slot.0).ok_or(io::ErrorKind::NotFound)?;
        self.set(slot.0, *gpa, memory, 0)?;
        used.remove(&slot.0);
        Ok(())
    }

    /// Allocates exactly the range to which the guest has moved a BAR.
    fn claim(&self, range: AddressRange<Gpa>) -> io::Result<()> {
        let policy = AllocPolicy::ExactMatch(range.start().value());
        let taken = lock(&self.addresses).allocate(range.len_bytes(), range.len_bytes(), policy);
        taken.map_err(|_| io::Error::from_raw_os_error(libc::EEXIST))?;
        Ok(())
    }

    fn release(&self, range: AddressRange<Gpa>) {
        if let Ok(range) = RangeInclusive::new(range.start().value(), range.end().value() - 1) {
            // An error means that the range was not allocated.
            let _ = lock(&self.addresses).free(&range);
        }
    }
}

/// The VMM's interrupt routes: GSIs above those of its I/O APIC.
struct Routes {
    vm: Arc<VmFd>,
    messages: Mutex<BTreeMap<u32, MsiMessage>>,
}

impl Routes {
    /// Changes the table, in KVM first: if KVM refuses, the table is unchanged.
    fn change<T>(&self, edit: impl FnOnce(&mut BTreeMap<u32, MsiMessage>) -> T) -> io::Result<T> {
        let mut messages = lock(&self.messages);
        let mut changed = messages.clone();
        let result = edit(&mut changed);
        let entry = |(gsi, message): (&u32, &MsiMessage)| {
            let mut entry = kvm_irq_routing_entry {
                gsi: *gsi,
                type_: KVM_IRQ_ROUTING_MSI,
                ..Default::default()
            };
            let [a, b, c, d, rest @ ..] = message.address.to_le_bytes();
            entry.u.msi.address_lo = u32::from_le_bytes([a, b, c, d]);
            entry.u.msi.address_hi = u32::from_le_bytes(rest);
            entry.u.msi.data = message.data;
            entry
        };
        let entries: Vec<_> = changed.iter().map(entry).collect();
        let table = KvmIrqRouting::from_entries(&entries).map_err(io::Error::other)?;
        self.vm.set_gsi_routing(&table)?;
        *messages = changed;
        Ok(result)
    }
}

impl MsiRouter for Routes {
    fn connect(&self, event: &EventFd, message: MsiMessage) -> io::Result<RouteId> {
        let gsi = self.change(|messages| {
            let gsi = (24..4096).find(|gsi| !messages.contains_key(gsi))?;
            messages.insert(gsi, message);
            Some(gsi)
        })?;
        let gsi = gsi.ok_or(io::ErrorKind::StorageFull)?;
        if let Err(error) = self.vm.register_irqfd(event, gsi) {
            self.change(|messages| messages.remove(&gsi))?;
            return Err(error.into());
        }
        Ok(RouteId(gsi))
    }

    fn update(&self, route: RouteId, message: MsiMessage) -> io::Result<()> {
        self.change(|messages| messages.insert(route.0, message))?;
        Ok(())
    }

    fn disconnect(&self, route: RouteId, event: &EventFd) -> io::Result<()> {
        self.vm.unregister_irqfd(event, route.0)?;
        self.change(|messages| messages.remove(&route.0))?;
        Ok(())
    }
}

/// Prints the device events.
struct Events;

impl EventSink for Events {
    fn device_event(&self, sbdf: Sbdf, event: DeviceEvent) {
        eprintln!("{sbdf}: {event}");
    }
}

/// The VMM's PCI bus.
struct Bus {
    /// Ranges that the host bridge forwards.
    windows: Vec<AddressRange<Gpa>>,
    ports: BTreeMap<Sbdf, VirtualPort>,
    devices: BTreeMap<Sbdf, AssignedDevice>,
}

impl Bus {
    fn config_read(&mut self, at: Sbdf, offset: u16, data: &mut [u8]) {
        match (self.devices.get_mut(&at), self.ports.get_mut(&at)) {
            (Some(device), _) => device.config_read(offset, data),
            (None, Some(port)) => port.config_read(offset, data),
            (None, None) => data.fill(0xff),
        }
    }

    fn config_write(&mut self, at: Sbdf, offset: u16, data: &[u8]) {
        if let Some(device) = self.devices.get_mut(&at) {
            device.config_write(offset, data);
        } else if let Some(port) = self.ports.get_mut(&at) {
            port.config_write(offset, data);
            self.spread();
        }
        for device in self.devices.values_mut() {
            device.retry_mappings();
        }
    }

    fn mmio_read(&mut self, gpa: Gpa, data: &mut [u8]) {
        let mut devices = self.devices.values_mut();
        if !devices.any(|device| device.mmio_read(gpa, data)) {
            data.fill(0xff);
        }
    }

    fn mmio_write(&mut self, gpa: Gpa, data: &[u8]) {
        let mut devices = self.devices.values_mut();
        devices.any(|device| device.mmio_write(gpa, data));
    }

    /// Passes the ranges that all ports above a device forward to the device.
    fn spread(&mut self) {
        for (at, device) in &mut self.devices {
            let mut reach = self.windows.clone();
            for port in self.ports.values() {
                let buses = port.buses();
                if (buses.secondary..=buses.subordinate).contains(&at.bus()) {
                    let through = |window: AddressRange<Gpa>| {
                        let parts = reach.iter().filter_map(move |r| r.intersect(&window));
                        parts.collect::<Vec<_>>()
                    };
                    reach = port.windows().flat_map(through).collect();
                }
            }
            device.set_reach(&reach);
        }
    }
}

/// Assigns the devices at these sysfs paths to the VM.
fn assign(
    vm: &Arc<VmFd>,
    memory: &Memory,
    slots: &Arc<Slots>,
    mut windows: Vec<AddressRange<Gpa>>,
    paths: &[String],
) -> Result<Bus> {
    // Check before opening anything.
    let (host, sysfs) = (HostSnapshot::read(Policy::default())?, Sysfs::default());
    let domain = Some(DomainName::Unnamed);
    let devices = paths
        .iter()
        .map(|path| DeviceInfo::read(&host, &sysfs, Path::new(path), domain.clone()));
    let request = AssignmentRequest {
        devices: devices.collect::<std::result::Result<_, _>>()?,
        others: &BTreeSet::new(),
        expose: &BTreeSet::new(),
        departed: None,
    };
    let assignment = check_assignment(&host, request)?;

    // One IOMMU context for each P2P domain, and one for all unshared devices.
    let mut request = kvm_create_device {
        type_: kvm_device_type_KVM_DEV_TYPE_VFIO,
        ..Default::default()
    };
    let kvm = Arc::new(vm.create_device(&mut request)?);
    // iommufd if the kernel and the devices support it, otherwise VFIO containers.
    let iommu = Arc::new(HostIommu::choose(
        None,
        &assignment.context_kinds(),
        Some(kvm),
        &Arc::default(),
    )?);
    let (mut subtrees, mut devices) = (Vec::new(), Vec::new());
    let mut translated: Option<Vec<AddressRange<Iova>>> = None;
    let mut contexts = Vec::new();
    let domains = assignment.domains.iter();
    let groups = domains.map(|members| (ContextKind::P2p, members));
    let groups = groups.chain([(ContextKind::Isolated, &assignment.unshared)]);
    for (number, (kind, members)) in groups.enumerate() {
        if members.is_empty() {
            continue;
        }
        let context = IommuContext::new(&iommu, kind)?;
        let opened = members.iter().map(|one| HostDevice::open(&context, one));
        let opened = opened.collect::<std::result::Result<Vec<_>, _>>()?;
        // The I/O addresses that the IOMMU translates for all devices.
        let ranges = context.iova_ranges()?;
        translated = Some(match translated {
            None => ranges,
            Some(others) => others
                .iter()
                .flat_map(|a| ranges.iter().filter_map(|b| a.intersect(b)))
                .collect(),
        });
        let endpoints = opened.iter().map(|device| device.endpoint().clone());
        match kind {
            ContextKind::P2p => subtrees.push(Subtree::Switch {
                members: endpoints.collect(),
                reserve: Reserve::default(),
            }),
            ContextKind::Isolated => subtrees.extend(endpoints.map(Subtree::Endpoint)),
        }
        contexts.push(context);
        let clique = Clique::of_domain(number).filter(|_| kind == ContextKind::P2p);
        devices.extend(opened.into_iter().map(|device| (device, clique)));
    }

    // Memory must be where the IOMMU translates, outside of the ranges that a host switch routes to a device.
    let holes = assignment.devices().flat_map(|one| &one.holes);
    let demands = Demands::new(&subtrees, holes)?;
    let regions = memory
        .iter()
        .filter_map(|region| AddressRange::new(Gpa::new(region.start_addr().0), region.len()));
    check_memory(regions, &translated.unwrap_or_default(), &demands)?;
    for context in &contexts {
        context.map_guest(memory)?;
    }

    // Assign addresses in the guest. A VMM may place ports and BARs itself instead.
    let apertures = Apertures {
        memory: windows.clone(),
        prefetchable: windows.clone(),
    };
    // Peers behind a switch that routes by bus address have their BARs there. The host bridge forwards these ranges.
    windows.extend(demands.fixed_windows);
    let resources = BusResources::root(apertures, windows.clone());
    let topology = assign_resources(&subtrees, resources)?;
    let routes = Arc::new(Routes {
        vm: vm.clone(),
        messages: Mutex::default(),
    });
    let mut bus = Bus {
        windows,
        ports: topology.ports.into_iter().collect(),
        devices: BTreeMap::new(),
    };
    for ((host, clique), place) in devices.into_iter().zip(topology.endpoints) {
        let params = DeviceParams {
            slots: slots.clone(),
            msi: routes.clone(),
            vector_fds: DescriptorLimit::NONE,
            intx: None,
            events: Arc::new(Events),
            mmio: bus.windows.clone(),
            clique,
        };
        let mut device = AssignedDevice::new(host, params)?;
        for (bar, gpa) in &place.bars {
            device.place_bar(bar, *gpa)?;
        }
        device.enable_memory()?;
        bus.devices.insert(place.sbdf, device);
    }
    Ok(bus)
}

fn main() -> Result<()> {
    const RAM_BYTES: usize = 512 << 20;
    let vm = Arc::new(Kvm::new()?.create_vm()?);
    vm.create_irq_chip()?;
    let memory = Memory::from_ranges(&[(GuestAddress(0), RAM_BYTES)])?;
    let mut addresses = AddressAllocator::new(0, 1 << 39)?;
    addresses.allocate(RAM_BYTES as u64, 4096, AllocPolicy::ExactMatch(0))?;
    let slots = Arc::new(Slots {
        vm: vm.clone(),
        used: Mutex::default(),
        addresses: Mutex::new(addresses),
    });
    for (gpa, region) in HostMemory::of_guest(&memory) {
        slots.add(gpa, region)?;
    }
    let below_4g = AddressRange::new(Gpa::new(0xc000_0000), 0x2000_0000);
    let above_4g = AddressRange::new(Gpa::new(1 << 38), 1 << 37);
    let windows = [below_4g, above_4g].into_iter().flatten().collect();
    let paths: Vec<String> = std::env::args().skip(1).collect();
    let mut bus = assign(&vm, &memory, &slots, windows, &paths)?;

    // The vCPUs would run here. The bus serves their MMIO and configuration accesses.
    let found: Vec<Sbdf> = bus.devices.keys().copied().collect();
    for at in found {
        let mut id = [0; 4];
        bus.config_read(at, 0, &mut id);
        println!("{at}: {:08x}", u32::from_le_bytes(id));
        bus.config_write(at, 4, &[0x06]);
    }
    for device in bus.devices.values_mut() {
        for (bar, iova) in device.peer_windows() {
            println!("{}: peers reach BAR {bar} at {iova}", device.sbdf());
        }
        // The VMM's event loop would wait for `device.notices()`, which become readable when the host reports an event.
        device.process_events();
    }
    let mut word = [0; 4];
    bus.mmio_read(Gpa::new(0xc000_0000), &mut word);
    bus.mmio_write(Gpa::new(0xc000_0000), &word);
    Ok(())
}
