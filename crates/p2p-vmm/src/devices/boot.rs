//! The devices of a VM at boot. They are opened before the address space is laid out, because it depends on them.

use std::sync::Arc;

use anyhow::bail;
use guest_topology::{Demands, GuestTopology, Subtree, assign_resources};
use hotplug::SlotBus;
use iommu_group::Placement;
use p2p_vfio::{Candidate, DomainName, HostDevice};

use super::bus_resources::{bus_range, empty_root, reserve, whole_pages};
use super::check::CheckedDevices;
use super::contexts::{Contexts, Domain, gaps};
use super::events::DeviceEvents;
use super::registry::{Devices, GuestDevice};
use super::slot_contents::{Guest, Opened, endpoint, prefer_bus_address};
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
    devices: Vec<(HostDevice, Candidate)>,
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
    /// Opens the admitted devices: those of each P2P domain in an IOMMU context of its own, the others in a common
    /// one. Devices can be added later to a VM that is `hotpluggable`.
    pub(crate) fn open(
        contexts: Contexts,
        checked: &'a CheckedDevices,
        hotpluggable: bool,
    ) -> anyhow::Result<Self> {
        let mut this = Self {
            checked,
            hotpluggable,
            contexts,
            groups: Vec::new(),
        };
        for domain in &checked.admitted.domains {
            this.open_in(&domain.members)?;
        }
        this.open_in(&checked.admitted.others)?;
        Ok(this)
    }

    fn open_in(&mut self, candidates: &[Candidate]) -> anyhow::Result<()> {
        let Some(first) = candidates.first() else {
            return Ok(());
        };
        let fixed = first.placement == Placement::AtBusAddress;
        let name = first.domain.clone();
        let added = self.checked.admitted.reaches();
        let mut domain = self.contexts.create(name.as_ref(), &added)?;
        domain.fixed = fixed;
        let open = |candidate: &Candidate| -> anyhow::Result<_> {
            let mut candidate = candidate.clone();
            if self.hotpluggable {
                candidate = prefer_bus_address(candidate);
            }
            let device = HostDevice::open(&domain.context, &candidate)?;
            Ok((device, candidate))
        };
        let devices = candidates.iter().map(open).collect::<Result<_, _>>()?;
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
        let holes = all.flat_map(|(_, candidate)| &candidate.holes);
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
                .map(|(layout, (_, candidate))| reserve(candidate, layout));
            subtrees.push(Subtree::Switch {
                members: endpoints.collect(),
                reserve: reserve.unwrap_or_default(),
            });
        }
        subtrees
    }

    /// Maps guest memory for the devices and plugs them into the guest: below a virtual switch for each P2P domain,
    /// and below a root port for each of the others.
    pub(crate) fn assign(mut self, guest: Guest) -> anyhow::Result<Devices> {
        for Domain { context, .. } in self.contexts.domains.values() {
            context.map_guest(&guest.memory)?;
        }
        let topology = self.assign_resources(&guest.layout)?;
        let events = Arc::new(DeviceEvents::new()?);
        let mut opened = Vec::new();
        let mut assigned = Vec::new();
        for (device, candidate) in self.groups.drain(..).flat_map(|group| group.devices) {
            let domain = self.contexts.domains.get(&candidate.domain);
            opened.push(Opened {
                host: device,
                clique: domain.and_then(|domain| domain.clique),
            });
            assigned.push(candidate);
        }
        let plugged = guest.plug(opened, topology, SlotBus::Root, &events)?;
        let mut list = Vec::new();
        for (candidate, plugged) in assigned.into_iter().zip(plugged) {
            let Some(config) = self.checked.configs.get(&candidate.sbdf) else {
                bail!("{} was not requested", candidate.sbdf);
            };
            list.push(GuestDevice::new(config.clone(), candidate, plugged));
        }
        Devices::new(guest, self.contexts, list, events)
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
