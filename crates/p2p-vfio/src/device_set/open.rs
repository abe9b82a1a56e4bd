//! Open devices, before the guest's address space is laid out, which depends on them.

use std::sync::{Arc, Mutex};

use guest_topology::{BusResources, Demands, GuestTopology, SlotBus, Subtree, assign_resources};
use iommu_group::assignment::{ContextKind, DeviceInfo, DomainName, Exposed};
use iommu_group::{Address, AddressRange, Gpa, Iova, Placement, Sbdf};

use crate::bus::PciBus;
use crate::claims::Claims;
use crate::device::HostDevice;
use crate::lock::lock;

use super::contexts::{Contexts, Domain, gaps};
use super::events::DeviceEvents;
use super::members::{Member, Members, Watch};
use super::plug::{Guest, Opened, prefer_bus_address};
use super::resources::{bus_range, reserve, whole_pages};
use super::{DevicePlan, DeviceSet, DeviceSetError, GuestSpace, IommuOptions, VmHooks};

/// Open devices. They are closed when this is dropped.
pub struct OpenDevices {
    plan: DevicePlan,
    contexts: Contexts,
    groups: Vec<ContextDevices>,
}

/// Open devices that share a context.
struct ContextDevices {
    domain: Option<DomainName>,
    devices: Vec<(HostDevice, DeviceInfo)>,
}

/// What open devices require of the guest's address space.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpaceDemands {
    /// Ranges that must stay unused by what devices reach, whole pages.
    pub holes: Vec<AddressRange<Gpa>>,
    /// PCI windows at fixed addresses.
    pub fixed: Vec<AddressRange<Gpa>>,
    /// PCI windows that should be reserved for devices that are added later.
    pub preferred: Vec<AddressRange<Gpa>>,
    /// End of the addresses that every device can use; `None` without devices.
    pub limit: Option<u64>,
}

impl DevicePlan {
    /// Opens the devices: those of each P2P domain in an IOMMU context of its own, the others in a common one. The
    /// kernel resets them.
    ///
    /// # Errors
    /// [`DeviceSetError::Interface`], [`DeviceSetError::KvmVfio`], [`DeviceSetError::Context`],
    /// [`DeviceSetError::Attach`]. All devices are closed then.
    pub fn open(self, options: IommuOptions) -> Result<OpenDevices, DeviceSetError> {
        let mut open = OpenDevices {
            contexts: Contexts::new(options),
            groups: Vec::new(),
            plan: self,
        };
        let assignment = &open.plan.assignment;
        let added = assignment.context_kinds();
        for members in assignment.domains.iter().chain([&assignment.unshared]) {
            let group = open_in(&mut open.contexts, members, &added)?;
            open.groups.extend(group);
        }
        Ok(open)
    }
}

/// Opens the devices of one context, which is created.
fn open_in(
    contexts: &mut Contexts,
    infos: &[DeviceInfo],
    added: &[(Sbdf, ContextKind)],
) -> Result<Option<ContextDevices>, DeviceSetError> {
    let Some(first) = infos.first() else {
        return Ok(None);
    };
    let name = first.domain.clone();
    let mut domain = contexts.create(name.as_ref(), added)?;
    domain.placement = first.placement;
    let hotplug = contexts.hotplug();
    let open = |info: &DeviceInfo| -> Result<_, DeviceSetError> {
        let mut info = info.clone();
        if hotplug {
            info = prefer_bus_address(info);
        }
        let device = HostDevice::open(&domain.context, &info)?;
        Ok((device, info))
    };
    let devices = infos.iter().map(open).collect::<Result<_, _>>()?;
    contexts.domains.insert(name.clone(), domain);
    Ok(Some(ContextDevices {
        domain: name,
        devices,
    }))
}

impl OpenDevices {
    /// Exposures that are accepted, and those that depend on the root complex or on a device.
    pub fn exposures(&self) -> &[Exposed] {
        &self.plan.assignment.exposures
    }

    /// The I/O addresses that the IOMMU translates for all devices, ascending; everything without devices.
    ///
    /// # Errors
    /// [`DeviceSetError::Context`] if the kernel does not say it.
    pub fn iova_ranges(&self) -> Result<Vec<AddressRange<Iova>>, DeviceSetError> {
        let all = AddressRange::between(Iova::new(0), Iova::new(u64::MAX));
        let ranges = self.contexts.iova_ranges()?;
        Ok(ranges.unwrap_or_else(|| all.into_iter().collect()))
    }

    /// What the devices require of the guest's address space.
    ///
    /// # Errors
    /// [`DeviceSetError::Context`] if the kernel does not say which addresses the IOMMU translates;
    /// [`DeviceSetError::NoRoom`], [`DeviceSetError::FixedWindow`] if no address space satisfies the devices.
    pub fn demands(&self) -> Result<SpaceDemands, DeviceSetError> {
        let all = self.groups.iter().flat_map(|group| &group.devices);
        let holes = all.flat_map(|(_, info)| &info.holes);
        let bridges = self.plan.host.bridge_windows();
        let bridges = bridges.iter().filter_map(bus_range);
        let mut demands = SpaceDemands {
            holes: holes.filter_map(|hole| whole_pages(&hole.range)).collect(),
            preferred: bridges.collect(),
            ..SpaceDemands::default()
        };
        demands.fixed = Demands::new(&self.subtrees(None), &[])?.fixed_windows;
        if let Some(ranges) = self.contexts.iova_ranges()? {
            let (gaps, end) = gaps(&ranges);
            demands.limit = Some(end);
            demands.holes.extend(&gaps);
            check_reachable(&demands.fixed, &gaps)?;
        }
        Ok(demands)
    }

    /// The guest's topology. With a root bus, switches reserve resources for more members, and members are at their bus
    /// addresses even if that is not required yet: a later member may require it.
    fn subtrees(&self, hotplug: Option<&BusResources>) -> Vec<Subtree> {
        let mut subtrees = Vec::new();
        for group in &self.groups {
            let domain = self.contexts.domains.get(&group.domain);
            let required = domain.map_or(Placement::Anywhere, |domain| domain.placement);
            let placement = match hotplug.is_some() && group.domain.is_some() {
                true => Placement::AtBusAddress,
                false => required,
            };
            let devices = group.devices.iter();
            let endpoints = devices.map(|(device, _)| device.endpoint().clone().placed(placement));
            if group.domain.is_none() {
                subtrees.extend(endpoints.map(Subtree::Endpoint));
                continue;
            }
            let reserve = hotplug
                .zip(group.devices.first())
                .map(|(root, (_, info))| reserve(info, root));
            subtrees.push(Subtree::Switch {
                members: endpoints.collect(),
                reserve: reserve.unwrap_or_default(),
            });
        }
        subtrees
    }

    /// Maps guest memory for the devices, assigns resources and plugs the devices into the guest's PCI tree: below a
    /// virtual switch for each P2P domain, and below a root port for each of the others.
    ///
    /// # Errors
    /// [`DeviceSetError::Context`] if memory cannot be mapped; [`DeviceSetError::NoRoom`], [`DeviceSetError::Attach`],
    /// [`DeviceSetError::BarMapping`]. All devices are closed then.
    pub fn attach(
        mut self,
        space: GuestSpace,
        hooks: VmHooks,
    ) -> Result<DeviceSet, DeviceSetError> {
        for Domain { context, .. } in self.contexts.domains.values() {
            context.map_guest(&space.memory)?;
        }
        let root = BusResources::root(space.apertures, space.forwarded);
        let topology = self.assign_resources(&root)?;
        let events = Arc::new(DeviceEvents::new().map_err(DeviceSetError::Events)?);
        let watch = Watch::new()?;
        watch.add(events.wake()).map_err(DeviceSetError::Events)?;
        let guest = Guest {
            hooks,
            bus: PciBus::new(root.forwarded.clone()),
            claims: Arc::new(Claims::default()),
            events,
            root,
        };
        let mut opened = Vec::new();
        let mut infos = Vec::new();
        for (device, info) in self.groups.drain(..).flat_map(|group| group.devices) {
            let domain = self.contexts.domains.get(&info.domain);
            opened.push(Opened {
                host: device,
                clique: domain.and_then(|domain| domain.clique),
            });
            infos.push(info);
        }
        let plugged = guest.plug(opened, topology, SlotBus::Root)?;
        let mut list = Vec::new();
        for (info, plugged) in infos.into_iter().zip(plugged) {
            let Some(request) = self.plan.requests.remove(&info.sbdf) else {
                return Err(DeviceSetError::Unknown(info.sbdf.to_string()));
            };
            watch.add_device(&lock(&plugged.device));
            list.push(Member::new(request, info, plugged));
        }
        Ok(DeviceSet {
            guest,
            watch,
            members: Mutex::new(Members {
                list,
                contexts: self.contexts,
                memory: space.memory,
            }),
            ejected: Mutex::default(),
        })
    }

    fn assign_resources(&mut self, root: &BusResources) -> Result<GuestTopology, DeviceSetError> {
        if self.contexts.hotplug() {
            let subtrees = self.subtrees(Some(root));
            match assign_resources(&subtrees, root.clone()) {
                Ok(topology) => {
                    for (name, domain) in &mut self.contexts.domains {
                        if name.is_some() {
                            domain.placement = Placement::AtBusAddress;
                        }
                    }
                    return Ok(topology);
                }
                Err(error) => log::info!(
                    "cannot reserve resources for hotplug, so adding a device may fail: {error}"
                ),
            }
        }
        Ok(assign_resources(&self.subtrees(None), root.clone())?)
    }
}

/// Checks that the IOMMU can translate windows at fixed bus addresses. They are mapped there too, for peers whose
/// requests are redirected.
fn check_reachable(
    fixed: &[AddressRange<Gpa>],
    gaps: &[AddressRange<Gpa>],
) -> Result<(), DeviceSetError> {
    for window in fixed {
        let mut gaps = gaps.iter();
        if let Some(gap) = gaps.find(|gap| gap.intersect(window).is_some()) {
            return Err(DeviceSetError::FixedWindow {
                window: *window,
                gap: *gap,
            });
        }
    }
    Ok(())
}
