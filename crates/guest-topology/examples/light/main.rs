//! Peer-to-peer DMA in a VMM that has VFIO devices of its own, here those of `vfio-ioctls`. It adds `iommu-group` and
//! `guest-topology`, and nothing else. Parts of the VMM itself are in `vfio.rs`, its devices, and in the package
//! `example-vmm`, everything but devices.
//!
//! Usage: `light KERNEL INITRAMFS CMDLINE /sys/bus/pci/devices/0000:03:00.0[,p2p=on]…`
#![allow(unsafe_code, reason = "VFIO and KVM are given host addresses")]

mod bus;
mod vfio;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use example_vmm::{BootSource, Result, Vm};
use guest_topology::{
    Apertures, BarChange, BarMaps, BusResources, ConfigHeader, Demands, Endpoint, Reserve, Subtree,
    after_write, assign_resources, check_memory, usable_apertures,
};
use iommu_group::assignment::{
    Assignment, AssignmentRequest, DeviceInfo, DomainName, HostSnapshot, Refusal, check_assignment,
};
use iommu_group::policy::Policy;
use iommu_group::spec::{HEADER_BYTES, header};
use iommu_group::{AddressRange, Gpa, Sysfs};
use vfio_ioctls::VfioContainer;

use bus::Bus;

/// The devices of a VM before any is opened: in IOMMU contexts, and below the ports that the guest will see.
struct Plan {
    assignment: Assignment,
    subtrees: Vec<Subtree>,
    demands: Demands,
}

/// Hook 1, before anything is opened: checks the devices, and computes what they need.
fn plan(options: &[String]) -> Result<Plan> {
    let (host, sysfs) = (HostSnapshot::read(Policy::default())?, Sysfs::default());
    let device = |option: &String| -> Result<DeviceInfo> {
        let path = option.strip_suffix(",p2p=on");
        let domain = DomainName::requested(path.is_some(), None);
        let path = Path::new(path.unwrap_or(option));
        Ok(DeviceInfo::read(&host, &sysfs, path, domain)?)
    };
    let request = AssignmentRequest {
        devices: options.iter().map(device).collect::<Result<_>>()?,
        others: &BTreeSet::new(),
        expose: &BTreeSet::new(),
        departed: None,
    };
    let assignment = check_assignment(&host, request)?;
    let endpoint = |one: &DeviceInfo| -> Result<Endpoint> {
        Ok(Endpoint::of_function(host.topology(), one.sbdf)?.placed(one.placement))
    };
    let mut subtrees = Vec::new();
    for domain in &assignment.domains {
        subtrees.push(Subtree::Switch {
            members: domain.iter().map(endpoint).collect::<Result<_>>()?,
            reserve: Reserve::default(),
        });
    }
    for one in &assignment.unshared {
        subtrees.push(Subtree::Endpoint(endpoint(one)?));
    }
    let holes = assignment.devices().flat_map(|one| &one.holes);
    let demands = Demands::new(&subtrees, holes)?;
    Ok(Plan {
        assignment,
        subtrees,
        demands,
    })
}

/// Hook 2: opens the devices, a container for each domain and one for the others, and places them in the guest.
fn assign(vm: &Vm, plan: &Plan) -> Result<Bus> {
    let (assignment, mut opened) = (&plan.assignment, Vec::new());
    let (kvm, mut windows) = (vfio::kvm_device(vm)?, vm.pci_windows()?);
    let domains = assignment.domains.iter().map(|members| (members, true));
    for (members, is_p2p) in domains.chain([(&assignment.unshared, false)]) {
        if members.is_empty() {
            continue;
        }
        let container = Arc::new(VfioContainer::new(Some(Arc::clone(&kvm)))?);
        for one in members {
            let device =
                vfio::Device::open(&Sysfs::default().device_dir(one.sbdf), &container, vm)?;
            // An open device keeps its group. It must be the one that was checked.
            if Sysfs::default().group_of(one.sbdf)? != one.group {
                return Err(format!("{} has changed its IOMMU group", one.sbdf).into());
            }
            opened.push((device, is_p2p && !one.hidden));
        }
        let translated = vfio::iova_ranges(&container)?;
        check_memory(vm.ram(), &translated, &plan.demands)?;
        windows = usable_apertures(&windows, &translated, &plan.demands);
        // SAFETY: the VM keeps its memory, and makes no references into it.
        unsafe { container.vfio_map_guest_memory(&vm.memory) }?;
    }
    let apertures = Apertures {
        memory: windows.clone(),
        prefetchable: windows.clone(),
    };
    windows.extend(&plan.demands.fixed_windows);
    let resources = BusResources::root(apertures, windows.clone());
    let guest = assign_resources(&plan.subtrees, resources)?;
    let mut devices = BTreeMap::new();
    // Endpoints are in the order of the subtrees, which is that of the devices.
    let endpoints = plan.subtrees.iter().flat_map(Subtree::endpoints);
    for (((vfio, for_peers), endpoint), place) in
        opened.into_iter().zip(endpoints).zip(guest.endpoints)
    {
        let maps = BarMaps::new(endpoint.bars(), vfio.areas());
        let mut device = Device {
            vfio,
            maps,
            for_peers,
            windows: windows.clone(),
        };
        for (bar, gpa) in &place.bars {
            device.vfio.place_bar(bar, *gpa);
        }
        device.config_write(header::COMMAND, &header::COMMAND_MEMORY.to_le_bytes());
        devices.insert(place.sbdf, device);
    }
    let ports = guest.ports.into_iter().collect();
    Ok(Bus {
        windows,
        ports,
        devices,
    })
}

/// A device with the mappings of its BARs.
struct Device {
    vfio: vfio::Device,
    maps: BarMaps,
    /// Whether its BARs are mapped in the IOMMU context of its domain too.
    for_peers: bool,
    windows: Vec<AddressRange<Gpa>>,
}

impl Device {
    /// Hook 3, around each write to configuration space: no BAR is mapped while the device does not answer.
    fn config_write(&mut self, offset: u16, data: &[u8]) {
        let after = match self.vfio.stops(offset, data) {
            true => [0; HEADER_BYTES],
            false => after_write(self.vfio.header(), offset, data),
        };
        self.update(&after, false);
        self.vfio.config_write(offset, data);
        self.update(&self.vfio.header(), true);
    }

    /// Brings the mappings in step with a header.
    fn update(&mut self, header: &ConfigHeader, may_map: bool) {
        for change in self.maps.changes(header, &self.windows) {
            let made = match change {
                BarChange::Unmap(_, at) => self.vfio.unmap(at, self.for_peers),
                BarChange::Map(area, at) if may_map => self.vfio.map(area, at, self.for_peers),
                BarChange::Map(..) => continue,
            };
            match made {
                Ok(()) => self.maps.made(change),
                // It is tried again after the next write. A VMM limits what it logs.
                Err(error) => eprintln!("cannot make {change:?}: {error}"),
            }
        }
    }

    /// After a write to another function: maps BARs at addresses that another device has released.
    fn retry_mappings(&mut self) {
        self.update(&self.vfio.header(), true);
    }
}

fn start() -> Result<()> {
    let (source, devices) = BootSource::of_arguments()?;
    let plan = plan(&devices)?;
    let vm = Vm::new()?;
    let mut bus = assign(&vm, &plan)?;
    vm.run(&source, &bus.windows.clone(), &mut bus)
}

fn main() -> ExitCode {
    let Err(error) = start() else {
        return ExitCode::SUCCESS;
    };
    eprintln!("error: {error:#}");
    ExitCode::from(if error.is::<Refusal>() { 2 } else { 1 })
}
