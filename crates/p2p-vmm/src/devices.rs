//! The assigned devices of a VM: judged, opened, placed.

use std::sync::{Arc, Mutex};

use anyhow::Context;
use hotplug::DeviceConfig;
use iommu_group::{Sbdf, Sysfs};
use kvm_bindings::{kvm_create_device, kvm_device_type_KVM_DEV_TYPE_VFIO};
use kvm_ioctls::{DeviceFd, VmFd};
use p2p_vfio::{
    Address, AddressRange, Admitted, Apertures, AssignedDevice, Branch, Candidate, Clique,
    DeviceParams, DomainName, Endpoint, Gpa, HostDevice, IommuContext, Iova, Reach, VirtualPort,
    admit, lay_out,
};
use vm_memory::GuestMemoryMmap;

use crate::irq::{KvmLine, KvmRoutes};
use crate::layout::Layout;
use crate::notices::EventLog;
use crate::pci::{Bdf, PciBus, gsi_of};
use crate::slots::KvmSlots;

/// Reads what the host says of the devices and judges it. Nothing is opened or changed.
///
/// Refusals are [`Refusal`](p2p_vfio::Refusal) or [`SysfsError`](iommu_group::SysfsError).
pub(crate) fn judge(configs: &[DeviceConfig]) -> anyhow::Result<Admitted> {
    let sysfs = Sysfs::default();
    let candidates = configs
        .iter()
        .map(|config| Candidate::read(&sysfs, &config.path, domain_of(config)))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(admit(candidates)?)
}

/// The P2P domain that a device was asked to join.
fn domain_of(config: &DeviceConfig) -> Option<DomainName> {
    let name = config.p2p_domain.clone();
    let domain = name.map_or(DomainName::Unnamed, DomainName::Named);
    config.p2p.then_some(domain)
}

/// Devices that are open, before the guest's address space is laid out.
pub(crate) struct OpenDevices {
    /// Members of each P2P domain.
    domains: Vec<Vec<HostDevice>>,
    others: Vec<HostDevice>,
    contexts: Vec<IommuContext>,
}

impl OpenDevices {
    /// Opens the admitted devices: those of each P2P domain in an IOMMU context of its own, the others in another.
    pub(crate) fn open(vm: &VmFd, admitted: &Admitted) -> anyhow::Result<Self> {
        let mut this = Self {
            domains: Vec::new(),
            others: Vec::new(),
            contexts: Vec::new(),
        };
        if admitted.domains.is_empty() && admitted.others.is_empty() {
            return Ok(this);
        }
        let kvm = kvm_vfio_device(vm)?;
        for members in &admitted.domains {
            let members = this.open_in(Reach::Peers, members, &kvm)?;
            this.domains.push(members);
        }
        this.others = this.open_in(Reach::GuestMemory, &admitted.others, &kvm)?;
        Ok(this)
    }

    fn open_in(
        &mut self,
        reach: Reach,
        candidates: &[Candidate],
        kvm: &Arc<DeviceFd>,
    ) -> anyhow::Result<Vec<HostDevice>> {
        if candidates.is_empty() {
            return Ok(Vec::new());
        }
        let context = IommuContext::new(reach, Some(Arc::clone(kvm)))?;
        let devices = candidates
            .iter()
            .map(|candidate| HostDevice::open(&context, candidate))
            .collect::<Result<_, _>>()?;
        self.contexts.push(context);
        Ok(devices)
    }

    /// The I/O addresses that every device can use; `None` without devices, when any will do.
    pub(crate) fn iova_ranges(&self) -> anyhow::Result<Option<Vec<AddressRange<Iova>>>> {
        let mut usable: Option<Vec<AddressRange<Iova>>> = None;
        for context in &self.contexts {
            let ranges = context.iova_ranges()?;
            usable = Some(match usable {
                None => ranges,
                Some(so_far) => so_far
                    .iter()
                    .flat_map(|a| ranges.iter().filter_map(|b| a.intersect(b)))
                    .collect(),
            });
        }
        Ok(usable)
    }

    /// Gives the devices guest memory and the guest the devices: a virtual switch for each P2P domain, a root port for
    /// each of the others. BARs are placed and decoded, so that an error shows now and not in the guest.
    pub(crate) fn assign(
        self,
        guest: &Guest<'_>,
    ) -> anyhow::Result<Vec<Arc<Mutex<AssignedDevice>>>> {
        for context in &self.contexts {
            context.map_guest(guest.memory)?;
        }
        let branches = branches(&self.domains, &self.others);
        let apertures = Apertures {
            memory: guest
                .layout
                .mmio32
                .address_range()
                .context("no 32-bit PCI window")?,
            prefetchable: guest
                .layout
                .mmio64
                .address_range()
                .context("no 64-bit PCI window")?,
        };
        let topology = lay_out(&branches, apertures)?;
        let buses = |(sbdf, port): &(Sbdf, VirtualPort)| (*sbdf, port.buses());
        let buses: Vec<_> = topology.ports.iter().map(buses).collect();
        for (sbdf, port) in topology.ports {
            guest.pci.add(Bdf::from(sbdf), Arc::new(Mutex::new(port)))?;
        }
        let members = |(domain, members): (usize, Vec<HostDevice>)| {
            let clique = Clique::of_domain(domain);
            members.into_iter().map(move |device| (clique, device))
        };
        let members = self.domains.into_iter().enumerate().flat_map(members);
        let others = self.others.into_iter().map(|device| (None, device));
        let mut assigned = Vec::new();
        for ((clique, device), place) in members.chain(others).zip(topology.endpoints) {
            let line = KvmLine::new(guest.routes.clone(), gsi_of(place.sbdf, &buses));
            let params = DeviceParams {
                slots: guest.slots.clone(),
                msi: guest.routes.clone(),
                intx: Some(Arc::new(line)),
                events: Arc::new(EventLog),
                clique,
                mmio: vec![apertures.memory, apertures.prefetchable],
            };
            let mut device = AssignedDevice::new(device, params)?;
            log::info!("{} is {} in the guest", device.sbdf(), place.sbdf);
            for (bar, gpa) in &place.bars {
                device.place_bar(bar, *gpa)?;
            }
            device.enable_memory()?;
            let device = Arc::new(Mutex::new(device));
            guest.pci.add(Bdf::from(place.sbdf), device.clone())?;
            assigned.push(device);
        }
        Ok(assigned)
    }
}

/// What devices are assigned to.
pub(crate) struct Guest<'a> {
    pub(crate) memory: &'a GuestMemoryMmap,
    pub(crate) layout: &'a Layout,
    pub(crate) slots: &'a Arc<KvmSlots>,
    pub(crate) routes: &'a Arc<KvmRoutes>,
    pub(crate) pci: &'a PciBus,
}

/// The domains' switches first, then the others, which is the order of [`OpenDevices::assign`].
fn branches(domains: &[Vec<HostDevice>], others: &[HostDevice]) -> Vec<Branch> {
    let endpoint = |device: &HostDevice| Endpoint {
        bars: device.bars().to_vec(),
        link: device.link(),
    };
    let switch = |members: &Vec<HostDevice>| Branch::Switch(members.iter().map(endpoint).collect());
    let alone = |device: &HostDevice| Branch::Device(endpoint(device));
    let switches = domains.iter().map(switch);
    switches.chain(others.iter().map(alone)).collect()
}

/// The VM's KVM-VFIO device: through it KVM learns which groups the VM has (linux
/// Documentation/virt/kvm/devices/vfio.rst).
fn kvm_vfio_device(vm: &VmFd) -> anyhow::Result<Arc<DeviceFd>> {
    let mut request = kvm_create_device {
        type_: kvm_device_type_KVM_DEV_TYPE_VFIO,
        fd: 0,
        flags: 0,
    };
    let device = vm
        .create_device(&mut request)
        .context("cannot create the KVM-VFIO device (is KVM built with VFIO support?)")?;
    Ok(Arc::new(device))
}

/// Where RAM may not be, and the end of the usable space, from what the IOMMU can translate.
pub(crate) fn holes(ranges: &[AddressRange<Iova>]) -> (Vec<AddressRange<Gpa>>, u64) {
    let mut holes = Vec::new();
    let mut end = 0;
    for range in ranges {
        let start = range.start().value();
        if let Some(hole) = start
            .checked_sub(end)
            .and_then(|len| AddressRange::new(Gpa::new(end), len))
        {
            holes.push(hole);
        }
        end = end.max(range.end().value());
    }
    (holes, end)
}
