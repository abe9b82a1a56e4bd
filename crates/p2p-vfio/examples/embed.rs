//! Peer-to-peer DMA in a VMM that has its own guest memory, address allocator, memory slots, interrupt routes and PCI
//! bus. Usage: `embed /sys/bus/pci/devices/0000:03:00.0 /sys/bus/pci/devices/0000:04:00.0`
#![allow(unsafe_code, reason = "KVM is given host addresses")]

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use guest_topology::{Apertures, check_memory};
use iommu_group::assignment::{DomainName, HostSnapshot};
use iommu_group::policy::Policy;
use iommu_group::{Address, AddressRange, Gpa};
use kvm_bindings::{
    KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_irq_routing_entry, kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VmFd};
use p2p_vfio::{
    DescriptorLimit, DeviceRequest, DeviceSet, GuestSpace, HostMemory, IommuOptions, MemorySlots,
    MsiMessage, MsiRouter, RouteId, SlotId, VmHooks,
};
use vm_memory::bitmap::AtomicBitmap;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

/// The VMM's guest memory, with a bitmap of dirty pages.
type Memory = GuestMemoryMmap<AtomicBitmap>;
type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The VMM's memory slots.
struct Slots {
    vm: Arc<VmFd>,
    used: Mutex<BTreeMap<u32, (Gpa, HostMemory)>>,
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

/// Assigns the devices at these sysfs paths to the VM.
fn assign(
    vm: &Arc<VmFd>,
    memory: &Memory,
    slots: &Arc<Slots>,
    mut windows: Vec<AddressRange<Gpa>>,
    paths: &[String],
) -> Result<DeviceSet> {
    let request = |path: &String| DeviceRequest {
        tag: path.clone(),
        path: path.into(),
        domain: Some(DomainName::Unnamed),
        expose: BTreeSet::new(),
    };
    let requests: Vec<_> = paths.iter().map(request).collect();
    // Nothing is opened before the check.
    let plan = DeviceSet::plan(HostSnapshot::read(Policy::default())?, &requests)?;
    let demands = plan.demands()?;
    let open = plan.open(IommuOptions {
        interface: None,
        kvm: Some(vm.clone()),
        preopened: Arc::default(),
        hotplug: false,
    })?;
    // Memory must be where the IOMMU translates, outside of the ranges that a host switch routes to a device.
    let regions = memory
        .iter()
        .filter_map(|region| AddressRange::new(Gpa::new(region.start_addr().0), region.len()));
    check_memory(regions, &open.iova_ranges()?, &demands)?;
    let apertures = Apertures {
        memory: windows.clone(),
        prefetchable: windows.clone(),
    };
    // Peers behind a switch that routes by bus address have their BARs there. The host bridge forwards these ranges.
    windows.extend(demands.fixed_windows);
    let space = GuestSpace {
        memory: HostMemory::of_guest(memory),
        apertures,
        forwarded: windows,
    };
    let routes = Routes {
        vm: vm.clone(),
        messages: Mutex::default(),
    };
    Ok(open.attach(
        space,
        VmHooks {
            slots: slots.clone(),
            msi: Arc::new(routes),
            intx: None,
            vector_fds: DescriptorLimit::NONE,
            device_fds: DescriptorLimit::NONE,
        },
    )?)
}

fn main() -> Result<()> {
    const RAM_BYTES: usize = 512 << 20;
    let vm = Arc::new(Kvm::new()?.create_vm()?);
    vm.create_irq_chip()?;
    let memory = Memory::from_ranges(&[(GuestAddress(0), RAM_BYTES)])?;
    let slots = Arc::new(Slots {
        vm: vm.clone(),
        used: Mutex::default(),
    });
    for (gpa, region) in HostMemory::of_guest(&memory) {
        slots.add(gpa, region)?;
    }
    let below_4g = AddressRange::new(Gpa::new(0xc000_0000), 0x2000_0000);
    let above_4g = AddressRange::new(Gpa::new(1 << 38), 1 << 37);
    let windows = [below_4g, above_4g].into_iter().flatten().collect();
    let paths: Vec<String> = std::env::args().skip(1).collect();
    let devices = assign(&vm, &memory, &slots, windows, &paths)?;

    // The vCPUs would run here. The set serves their MMIO and configuration accesses.
    for member in devices.members() {
        let mut id = [0; 4];
        devices.config_read(member.guest, 0, &mut id);
        println!("{}: {:08x}", member.guest, u32::from_le_bytes(id));
        devices.config_write(member.guest, 4, &[0x06]);
        devices.with_device(&member.tag, |device| {
            for (bar, iova) in device.peer_windows() {
                println!("{}: peers reach BAR {bar} at {iova}", device.sbdf());
            }
        });
    }
    let mut word = [0; 4];
    devices.mmio_read(Gpa::new(0xc000_0000), &mut word);
    devices.mmio_write(Gpa::new(0xc000_0000), &word);
    // The VMM's event loop would wait for `devices.event_fd()`, which is readable when the host reports an event.
    for event in devices.process_events() {
        println!("{}: {:?}", event.host, event.kind);
    }
    Ok(())
}
