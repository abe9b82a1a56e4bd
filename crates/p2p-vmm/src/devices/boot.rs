//! The devices of a VM at boot. They are opened before the address space is laid out, because it depends on them.

use std::sync::Arc;

use anyhow::{anyhow, bail};
use guest_topology::{Demands, GuestTopology, Subtree, assign_resources};
use hotplug::SlotBus;
use iommu_group::Placement;
use iommu_group::assignment::{DeviceInfo, DomainName};
use p2p_vfio::HostDevice;

use super::bus_resources::{bus_range, empty_root, reserve, whole_pages};
use super::check::CheckedDevices;
use super::contexts::{Contexts, Domain, gaps};
use super::events::DeviceEvents;
use super::registry::{Devices, GuestDevice};
use super::slot_contents::{Guest, Opened, endpoint, prefer_bus_address};
use crate::error::VmmError;
use crate::layout::{GpaRange, Layout};

/// Open devices, before the guest's address space is laid out.
pub(crate) struct OpenDevices<'a> {
    checked: &'a CheckedDevices,
    hotpluggable: bool,
    contexts: Contexts,
    groups: Vec<ContextDevices>,
}

/// Open devices that share a context.
struct ContextDevices {
    domain: Option<DomainName>,
    devices: Vec<(HostDevice, DeviceInfo)>,
    /// Whether they must be at their bus addresses.
    fixed: bool,
}

/// What the devices require of the guest's address space.
#[derive(Default)]
pub(crate) struct AddressDemands {
    /// Ranges that must stay unused by what devices reach, page aligned.
    pub(crate) holes: Vec<GpaRange>,
    /// PCI windows at fixed addresses.
    pub(crate) fixed: Vec<GpaRange>,
    /// PCI windows that should be reserved for devices that are added later.
    pub(crate) preferred: Vec<GpaRange>,
    /// End of the addresses that every device can use.
    pub(crate) limit: Option<u64>,
}

impl<'a> OpenDevices<'a> {
    /// Opens the devices: those of each P2P domain in an IOMMU context of its own, the others in a common
    /// one. Devices can be added later to a VM that is `hotpluggable`.
    pub(crate) fn open(
        contexts: Contexts,
        checked: &'a CheckedDevices,
        hotpluggable: bool,
    ) -> Result<Self, VmmError> {
        let mut this = Self {
            checked,
            hotpluggable,
            contexts,
            groups: Vec::new(),
        };
        for members in &checked.assignment.domains {
            this.open_in(members)?;
        }
        this.open_in(&checked.assignment.unshared)?;
        Ok(this)
    }

    fn open_in(&mut self, infos: &[DeviceInfo]) -> Result<(), VmmError> {
        let Some(first) = infos.first() else {
            return Ok(());
        };
        let fixed = first.placement == Placement::AtBusAddress;
        let name = first.domain.clone();
        let added = self.checked.assignment.context_kinds();
        let mut domain = self.contexts.create(name.as_ref(), &added)?;
        domain.fixed = fixed;
        let open = |info: &DeviceInfo| -> Result<_, VmmError> {
            let mut info = info.clone();
            if self.hotpluggable {
                info = prefer_bus_address(info);
            }
            let device = HostDevice::open(&domain.context, &info)?;
            Ok((device, info))
        };
        let devices = infos.iter().map(open).collect::<Result<_, _>>()?;
        self.contexts.domains.insert(name.clone(), domain);
        self.groups.push(ContextDevices {
            domain: name,
            devices,
            fixed,
        });
        Ok(())
    }

    /// The requirements of all devices on the guest's address space.
    pub(crate) fn demands(&self) -> anyhow::Result<AddressDemands> {
        let all = self.groups.iter().flat_map(|group| &group.devices);
        let holes = all.flat_map(|(_, info)| &info.holes);
        let bridges = self.checked.host.bridge_windows();
        let bridges = bridges.iter().filter_map(bus_range);
        let mut demands = AddressDemands {
            holes: holes.filter_map(|hole| whole_pages(&hole.range)).collect(),
            preferred: bridges.collect(),
            ..AddressDemands::default()
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

    /// The guest's topology. With a layout, switches reserve resources for more members, and members are at their bus
    /// addresses even if that is not required yet: a later member may require it.
    fn subtrees(&self, hotpluggable: Option<&Layout>) -> Vec<Subtree> {
        let mut subtrees = Vec::new();
        for group in &self.groups {
            let fixed = group.fixed || hotpluggable.is_some() && group.domain.is_some();
            let devices = group.devices.iter();
            let endpoints = devices.map(|(device, _)| endpoint(device, fixed));
            if group.domain.is_none() {
                subtrees.extend(endpoints.map(Subtree::Endpoint));
                continue;
            }
            let reserve = hotpluggable
                .zip(group.devices.first())
                .map(|(layout, (_, info))| reserve(info, layout));
            subtrees.push(Subtree::Switch {
                members: endpoints.collect(),
                reserve: reserve.unwrap_or_default(),
            });
        }
        subtrees
    }

    /// Maps guest memory for the devices and plugs them into the guest: below a virtual switch for each P2P domain,
    /// and below a root port for each of the others.
    pub(crate) fn assign(mut self, guest: Guest) -> Result<Devices, VmmError> {
        for Domain { context, .. } in self.contexts.domains.values() {
            let mapped = context.map_guest(&guest.memory);
            mapped.map_err(VmmError::failed)?;
        }
        let topology = self.assign_resources(&guest.layout)?;
        let events = Arc::new(DeviceEvents::new().map_err(VmmError::failed)?);
        let mut opened = Vec::new();
        let mut assigned = Vec::new();
        for (device, info) in self.groups.drain(..).flat_map(|group| group.devices) {
            let domain = self.contexts.domains.get(&info.domain);
            opened.push(Opened {
                host: device,
                clique: domain.and_then(|domain| domain.clique),
            });
            assigned.push(info);
        }
        let plugged = guest.plug(opened, topology, SlotBus::Root, &events)?;
        let mut list = Vec::new();
        for (info, plugged) in assigned.into_iter().zip(plugged) {
            let Some(config) = self.checked.configs.get(&info.sbdf) else {
                return Err(VmmError::failed(anyhow!("{} was not requested", info.sbdf)));
            };
            list.push(GuestDevice::new(config.clone(), info, plugged));
        }
        Ok(Devices::new(guest, self.contexts, list, events)?)
    }

    fn assign_resources(&mut self, layout: &Layout) -> anyhow::Result<GuestTopology> {
        if self.hotpluggable {
            let subtrees = self.subtrees(Some(layout));
            match assign_resources(&subtrees, empty_root(layout)) {
                Ok(topology) => {
                    for (name, domain) in &mut self.contexts.domains {
                        domain.fixed = name.is_some();
                    }
                    return Ok(topology);
                }
                Err(error) => log::info!(
                    "cannot reserve resources for hotplug, so adding a device may fail: {error}"
                ),
            }
        }
        Ok(assign_resources(&self.subtrees(None), empty_root(layout))?)
    }
}

/// Checks that the IOMMU can translate windows at fixed bus addresses. They are mapped there too, for peers whose
/// requests are redirected.
fn check_reachable(fixed: &[GpaRange], gaps: &[GpaRange]) -> anyhow::Result<()> {
    for window in fixed {
        let mut gaps = gaps.iter();
        if let Some(gap) = gaps.find(|gap| gap.intersect(window).is_some()) {
            bail!(
                "a peer's window must be at its bus address {window}, but the IOMMU cannot translate {gap}"
            );
        }
    }
    Ok(())
}
