//! The assigned devices of a VM: judged, opened, placed.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex};

use anyhow::{Context, bail};
use hotplug::DeviceConfig;
use iommu_group::{Sbdf, Sysfs, SysfsError};
use kvm_bindings::{kvm_create_device, kvm_device_type_KVM_DEV_TYPE_VFIO};
use kvm_ioctls::{DeviceFd, VmFd};
use p2p_vfio::{
    Address, AddressRange, Admitted, Apertures, AssignedDevice, Branch, Candidate, Clique,
    DeviceParams, DomainName, Gpa, HostDevice, HostView, IommuContext, Iova, Policy, Reach,
    VirtualPort, admit, fixed_windows, lay_out,
};
use vm_memory::GuestMemoryMmap;

use crate::irq::{KvmLine, KvmRoutes};
use crate::layout::{GpaRange, Layout};
use crate::lock::lock;
use crate::notices::EventLog;
use crate::pci::{Bdf, PciBus, gsi_of};
use crate::slots::KvmSlots;

/// Reads what the host says of the devices and judges it. Nothing is opened or changed.
///
/// Refusals are [`Refusal`](p2p_vfio::Refusal) or [`SysfsError`](iommu_group::SysfsError).
pub(crate) fn judge(configs: &[DeviceConfig], policy: &Policy) -> anyhow::Result<Admitted> {
    let host = HostView::read(policy.clone())?;
    let candidates = configs
        .iter()
        .map(|config| Candidate::read(&host, &config.path, domain_of(config)))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(admit(candidates, host.verdicts())?)
}

/// The P2P domain that a device was asked to join.
pub(crate) fn domain_of(config: &DeviceConfig) -> Option<DomainName> {
    let name = config.p2p_domain.clone();
    let domain = name.map_or(DomainName::Unnamed, DomainName::Named);
    config.p2p.then_some(domain)
}

/// Devices that are open, before the guest's address space is laid out.
#[derive(Default)]
pub(crate) struct OpenDevices {
    /// How the guest will find them: a switch for each P2P domain, then a root port for each of the others.
    branches: Vec<Branch>,
    /// The devices in the order in which the branches name them.
    devices: Vec<(Option<Clique>, HostDevice)>,
    contexts: Vec<IommuContext>,
    /// Bus addresses that a switch of the host takes for others before the IOMMU sees them.
    holes: Vec<GpaRange>,
}

/// What the devices demand of the guest's address space.
#[derive(Default)]
pub(crate) struct Demands {
    /// Where nothing may be that devices reach, page aligned.
    pub(crate) holes: Vec<GpaRange>,
    /// PCI windows that must be where they are.
    pub(crate) fixed: Vec<GpaRange>,
    /// End of what every device can address.
    pub(crate) limit: Option<u64>,
}

impl OpenDevices {
    /// Opens the admitted devices: those of each P2P domain in an IOMMU context of its own, the others in another.
    pub(crate) fn open(vm: &VmFd, admitted: &Admitted) -> anyhow::Result<Self> {
        let mut this = Self::default();
        if admitted.domains.is_empty() && admitted.others.is_empty() {
            return Ok(this);
        }
        let kvm = kvm_vfio_device(vm)?;
        for (number, domain) in admitted.domains.iter().enumerate() {
            let devices = this.open_in(Reach::Peers, &domain.members, &kvm)?;
            let endpoints = devices.iter().map(HostDevice::endpoint).collect();
            this.branches.push(Branch::Switch(endpoints));
            let clique = Clique::of_domain(number);
            let members = devices.into_iter().map(|device| (clique, device));
            this.devices.extend(members);
        }
        let devices = this.open_in(Reach::GuestMemory, &admitted.others, &kvm)?;
        for device in devices {
            this.branches.push(Branch::Device(device.endpoint()));
            this.devices.push((None, device));
        }
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
        let holes = candidates.iter().flat_map(|candidate| &candidate.holes);
        self.holes.extend(holes.map(whole_pages));
        Ok(devices)
    }

    /// What the guest's address space must be like.
    pub(crate) fn demands(&self) -> anyhow::Result<Demands> {
        let mut demands = Demands {
            holes: self.holes.clone(),
            fixed: Vec::new(),
            limit: None,
        };
        for window in fixed_windows(&self.branches)? {
            demands.fixed.push(GpaRange::from(&window));
        }
        if let Some(ranges) = self.iova_ranges()? {
            let (gaps, end) = gaps(&ranges);
            demands.limit = Some(end);
            demands.holes.extend(gaps.iter().map(GpaRange::from));
            check_reachable(&demands.fixed, &gaps)?;
        }
        Ok(demands)
    }

    /// The I/O addresses that every device can use; `None` without devices, when any will do.
    fn iova_ranges(&self) -> anyhow::Result<Option<Vec<AddressRange<Iova>>>> {
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
    pub(crate) fn assign(self, guest: &Guest<'_>) -> anyhow::Result<Vec<Assigned>> {
        for context in &self.contexts {
            context.map_guest(guest.memory)?;
        }
        let ranges =
            |ranges: &[GpaRange]| ranges.iter().filter_map(GpaRange::address_range).collect();
        let apertures = Apertures {
            memory: ranges(&guest.layout.mmio32),
            prefetchable: ranges(&[guest.layout.mmio64]),
        };
        let windows: Vec<AddressRange<Gpa>> = ranges(&guest.layout.pci);
        let topology = lay_out(&self.branches, &apertures)?;
        let buses = |(sbdf, port): &(Sbdf, VirtualPort)| (*sbdf, port.buses());
        let buses: Vec<_> = topology.ports.iter().map(buses).collect();
        for (sbdf, port) in topology.ports {
            guest.pci.add(Bdf::from(sbdf), Arc::new(Mutex::new(port)))?;
        }
        let mut assigned = Vec::new();
        for ((clique, device), place) in self.devices.into_iter().zip(topology.endpoints) {
            let line = KvmLine::new(guest.routes.clone(), gsi_of(place.sbdf, &buses));
            let params = DeviceParams {
                slots: guest.slots.clone(),
                msi: guest.routes.clone(),
                intx: Some(Arc::new(line)),
                events: Arc::new(EventLog),
                clique,
                mmio: windows.clone(),
            };
            let mut device = AssignedDevice::new(device, params)?;
            log::info!("{} is {} in the guest", device.sbdf(), place.sbdf);
            for (bar, gpa) in &place.bars {
                device.place_bar(bar, *gpa)?;
            }
            device.enable_memory()?;
            let device = Arc::new(Mutex::new(device));
            let bdf = Bdf::from(place.sbdf);
            guest.pci.add(bdf, device.clone())?;
            let id = guest.names.get(&lock(&device).sbdf()).cloned();
            assigned.push(Assigned {
                id: id.unwrap_or_else(|| bdf.to_string()),
                bdf,
                device,
            });
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
    /// How the API calls each device.
    pub(crate) names: &'a BTreeMap<Sbdf, String>,
}

/// A device in the guest.
pub(crate) struct Assigned {
    /// How the API calls it.
    pub(crate) id: String,
    /// Where the guest finds it.
    pub(crate) bdf: Bdf,
    pub(crate) device: Arc<Mutex<AssignedDevice>>,
}

/// How the API calls each device.
pub(crate) fn names(configs: &[DeviceConfig]) -> Result<BTreeMap<Sbdf, String>, SysfsError> {
    let sysfs = Sysfs::default();
    configs
        .iter()
        .filter_map(|config| Some((config, config.id.clone()?)))
        .map(|(config, id)| Ok((sysfs.resolve(&config.path)?, id)))
        .collect()
}

/// A range of bus addresses, extended to whole pages.
fn whole_pages(range: &RangeInclusive<u64>) -> GpaRange {
    const PAGE: u64 = 4096;
    let end = range.end().saturating_add(1).checked_next_multiple_of(PAGE);
    GpaRange::new(
        range.start() / PAGE * PAGE,
        end.unwrap_or(u64::MAX / PAGE * PAGE),
    )
}

/// A window that must be at its bus address must be one that the IOMMU can translate too: it is mapped there, so that a
/// peer whose requests are redirected finds it as well.
fn check_reachable(fixed: &[GpaRange], gaps: &[AddressRange<Gpa>]) -> anyhow::Result<()> {
    for window in fixed {
        let gap = gaps
            .iter()
            .find(|gap| GpaRange::from(*gap).intersect(window).len_bytes() > 0);
        if let Some(gap) = gap {
            bail!(
                "a peer's window must be at its bus address {window}, but the IOMMU cannot translate {gap}"
            );
        }
    }
    Ok(())
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

/// What lies between the ranges, and their end.
fn gaps(ranges: &[AddressRange<Iova>]) -> (Vec<AddressRange<Gpa>>, u64) {
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
