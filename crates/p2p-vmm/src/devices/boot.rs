//! The devices that a VM has when it boots: open before the address space is laid out, which depends on them.

use std::sync::Arc;

use anyhow::bail;
use hotplug::SlotBus;
use iommu_group::Placement;
use p2p_vfio::{
    AddressRange, Branch, Candidate, DomainName, Gpa, GuestTopology, HostDevice, fixed_windows,
    lay_out,
};

use super::bus_resources::{bus_range, empty_root, reserve, whole_pages};
use super::contexts::{Contexts, Domain, gaps};
use super::events::DeviceEvents;
use super::judge::Judged;
use super::registry::{Devices, GuestDevice};
use super::slot_contents::{Guest, Opened, endpoint, prefer_bus_address};
use crate::layout::{GpaRange, Layout};

/// Devices that are open, before the guest's address space is laid out.
pub(crate) struct OpenDevices<'a> {
    judged: &'a Judged,
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

/// What the devices demand of the guest's address space.
#[derive(Default)]
pub(crate) struct Demands {
    /// Where nothing may be that devices reach, page aligned.
    pub(crate) holes: Vec<GpaRange>,
    /// PCI windows that must be where they are.
    pub(crate) fixed: Vec<GpaRange>,
    /// PCI windows that had better be there, for devices that may come later.
    pub(crate) preferred: Vec<GpaRange>,
    /// End of what every device can address.
    pub(crate) limit: Option<u64>,
}

impl<'a> OpenDevices<'a> {
    /// Opens the admitted devices: those of each P2P domain in an IOMMU context of its own, the others in another.
    /// A VM that is `hotpluggable` may get others later.
    pub(crate) fn open(
        contexts: Contexts,
        judged: &'a Judged,
        hotpluggable: bool,
    ) -> anyhow::Result<Self> {
        let mut this = Self {
            judged,
            hotpluggable,
            contexts,
            groups: Vec::new(),
        };
        for domain in &judged.admitted.domains {
            this.open_in(&domain.members)?;
        }
        this.open_in(&judged.admitted.others)?;
        Ok(this)
    }

    fn open_in(&mut self, candidates: &[Candidate]) -> anyhow::Result<()> {
        let Some(first) = candidates.first() else {
            return Ok(());
        };
        let fixed = first.placement == Placement::AtBusAddress;
        let name = first.domain.clone();
        let added = self.judged.admitted.reaches();
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

    /// What the guest's address space must be like.
    pub(crate) fn demands(&self) -> anyhow::Result<Demands> {
        let all = self.groups.iter().flat_map(|group| &group.devices);
        let holes = all.flat_map(|(_, candidate)| &candidate.holes);
        let bridges = self.judged.host.bridge_windows();
        let bridges = bridges.iter().filter_map(bus_range);
        let mut demands = Demands {
            holes: holes.map(|hole| whole_pages(&hole.range)).collect(),
            preferred: bridges.map(|window| GpaRange::from(&window)).collect(),
            ..Demands::default()
        };
        for window in fixed_windows(&self.branches(None))? {
            demands.fixed.push(GpaRange::from(&window));
        }
        if let Some(ranges) = self.contexts.iova_ranges()? {
            let (gaps, end) = gaps(&ranges);
            demands.limit = Some(end);
            demands.holes.extend(gaps.iter().map(GpaRange::from));
            check_reachable(&demands.fixed, &gaps)?;
        }
        Ok(demands)
    }

    /// How the guest will find the devices. With a layout switches keep room for more members, and members are at their
    /// bus addresses even if they need not be: a later one may make it necessary.
    fn branches(&self, hotpluggable: Option<&Layout>) -> Vec<Branch> {
        let mut branches = Vec::new();
        for group in &self.groups {
            let fixed = group.fixed || hotpluggable.is_some() && group.domain.is_some();
            let devices = group.devices.iter();
            let endpoints = devices.map(|(device, candidate)| endpoint(device, candidate, fixed));
            if group.domain.is_none() {
                branches.extend(endpoints.map(Branch::Device));
                continue;
            }
            let reserve = hotpluggable
                .zip(group.devices.first())
                .map(|(layout, (_, candidate))| reserve(candidate, layout));
            branches.push(Branch::Switch {
                members: endpoints.collect(),
                spare: reserve.unwrap_or_default(),
            });
        }
        branches
    }

    /// Gives the devices guest memory and the guest the devices: a virtual switch for each P2P domain, a root port for
    /// each of the others.
    pub(crate) fn assign(mut self, guest: Guest) -> anyhow::Result<Devices> {
        for Domain { context, .. } in self.contexts.domains.values() {
            context.map_guest(&guest.memory)?;
        }
        let topology = self.lay_out(&guest.layout)?;
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
            let Some(config) = self.judged.configs.get(&candidate.sbdf) else {
                bail!("{} was not asked for", candidate.sbdf);
            };
            list.push(GuestDevice::new(config.clone(), candidate, plugged));
        }
        Devices::new(guest, self.contexts, list, events)
    }

    fn lay_out(&mut self, layout: &Layout) -> anyhow::Result<GuestTopology> {
        if self.hotpluggable {
            let branches = self.branches(Some(layout));
            match lay_out(&branches, empty_root(layout)) {
                Ok(topology) => {
                    for (name, domain) in &mut self.contexts.domains {
                        domain.fixed = name.is_some();
                    }
                    return Ok(topology);
                }
                Err(error) => log::info!("no room for devices that come later: {error}"),
            }
        }
        Ok(lay_out(&self.branches(None), empty_root(layout))?)
    }
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
