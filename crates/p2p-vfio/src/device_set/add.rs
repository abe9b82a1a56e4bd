//! Adds a device to a running VM.

use std::collections::BTreeSet;

use guest_topology::{GuestTopology, SlotBus, Subtree, assign_resources};
use iommu_group::assignment::{DeviceInfo, DomainName, Exposed, HostSnapshot};
use iommu_group::{Address, AddressRange, Gpa, Iova, MemoryHole, Placement, Sbdf};

use crate::bus::PciError;
use crate::device::{AttachError, BarMappingError, HostDevice};
use crate::lock::lock;

use super::contexts::{Domain, within};
use super::members::{Member, MemberView, Members};
use super::plan::check;
use super::plug::{Opened, prefer_bus_address};
use super::resources::{live, reserve, whole_pages};
use super::{DeviceRequest, DeviceSet, DeviceSetError};

/// A device that was added.
#[derive(Debug)]
pub struct Added {
    /// The device. The VMM announces its slot to the guest.
    pub member: MemberView,
    /// Its exposures that are accepted, and those that depend on the root complex or on a device.
    pub exposures: Vec<Exposed>,
}

/// The planned place of an added device.
struct PlannedTopology {
    bus: SlotBus,
    topology: GuestTopology,
    placement: Placement,
}

impl DeviceSet {
    /// Whether a device that is added to this domain needs a switch of its own, because the guest has none with members.
    pub fn needs_switch(&self, domain: Option<&DomainName>) -> bool {
        domain.is_some() && lock(&self.members).switch_of(domain).is_none()
    }

    /// Checks whether a device could be added. Nothing is opened or changed.
    ///
    /// # Errors
    /// As for [`add`](Self::add).
    pub fn check_added(
        &self,
        host: &HostSnapshot,
        request: &DeviceRequest,
        departed: &BTreeSet<Sbdf>,
    ) -> Result<(), DeviceSetError> {
        lock(&self.members).check(host, request, departed).map(drop)
    }

    /// Adds a device to the running VM: checks it together with the present ones, opens it, and plugs it into the
    /// guest's PCI tree. The VMM then announces the slot to the guest. `departed` are functions that the VM had before
    /// and has no longer.
    ///
    /// # Errors
    /// [`DeviceSetError`] names the reason; nothing is changed then.
    pub fn add(
        &self,
        host: &HostSnapshot,
        request: DeviceRequest,
        departed: &BTreeSet<Sbdf>,
    ) -> Result<Added, DeviceSetError> {
        let mut members = lock(&self.members);
        let (info, exposures) = members.check(host, &request, departed)?;
        let attach = || self.attach(&mut members, info.clone(), &request);
        let member = retry_on_claim_conflict(attach)?;
        Ok(Added { member, exposures })
    }

    /// Opens the device and plugs it into the guest. An error undoes everything.
    fn attach(
        &self,
        members: &mut Members,
        info: DeviceInfo,
        request: &DeviceRequest,
    ) -> Result<MemberView, DeviceSetError> {
        self.guest.hooks.check_room(info.sbdf)?;
        let required = info.placement;
        let info = prefer_bus_address(info);
        let name = info.domain.clone();
        // Declared before the device, and so dropped after it.
        let created = match members.contexts.domains.contains_key(&name) {
            true => None,
            false => {
                let added = (info.sbdf, info.context_kind());
                Some(members.contexts.create(name.as_ref(), &[added])?)
            }
        };
        let domain = created
            .as_ref()
            .or_else(|| members.contexts.domains.get(&name));
        let domain = domain.ok_or_else(|| DeviceSetError::Unknown(info.sbdf.to_string()))?;
        let host = HostDevice::open(&domain.context, &info)?;
        let ranges = domain.context.iova_ranges()?;
        info.reaches_memory(members.memory_ranges())?;
        let out_of_reach = members
            .memory_ranges()
            .find(|memory| !within(memory, &ranges));
        if let Some(memory) = out_of_reach {
            let sbdf = info.sbdf;
            return Err(DeviceSetError::Untranslated { sbdf, memory });
        }
        members.check_peers(&info, domain.placement)?;
        if created.is_some() {
            domain.context.map_guest(&members.memory)?;
        }
        let clique = domain.clique;
        let place = self.place(members, &host, &info, required, domain)?;
        if info.domain.is_some() {
            check_bar_addresses(&place.topology, &ranges)?;
        }
        let opened = vec![Opened { host, clique }];
        let plugged = self.guest.plug(opened, place.topology, place.bus)?;
        let plugged = plugged.into_iter().next();
        let plugged = plugged.ok_or_else(|| DeviceSetError::Unknown(info.sbdf.to_string()))?;
        self.watch.add_device(&lock(&plugged.device));
        if let Some(domain) = created {
            members.contexts.domains.insert(name.clone(), domain);
        }
        if let Some(domain) = members.contexts.domains.get_mut(&name) {
            domain.placement = place.placement;
        }
        let member = Member::new(request.clone(), info, plugged);
        let view = member.view();
        members.list.push(member);
        Ok(view)
    }

    /// Plans where the device goes in the guest's current topology: below the switch of its domain if there is one,
    /// otherwise on the root bus. The first member of a domain is placed at its bus addresses if possible, because a
    /// later member may require that.
    fn place(
        &self,
        members: &Members,
        host: &HostDevice,
        info: &DeviceInfo,
        required: Placement,
        domain: &Domain,
    ) -> Result<PlannedTopology, DeviceSetError> {
        let must = required == Placement::AtBusAddress;
        let endpoint = |placement| host.endpoint().clone().placed(placement);
        if info.domain.is_none() {
            let placement = Placement::Anywhere;
            let subtree = Subtree::Endpoint(endpoint(placement));
            return self.place_on(members, info, SlotBus::Root, subtree, placement);
        }
        if let Some(root) = members.switch_of(info.domain.as_ref()) {
            let placement = domain.placement;
            if must && placement != required {
                return Err(DeviceSetError::PeersElsewhere { sbdf: info.sbdf });
            }
            let subtree = Subtree::Endpoint(endpoint(placement));
            return self.place_on(members, info, SlotBus::Switch(root), subtree, placement);
        }
        let on_root = |placement| {
            let subtree = Subtree::Switch {
                members: vec![endpoint(placement)],
                reserve: reserve(info, &self.guest.root),
            };
            self.place_on(members, info, SlotBus::Root, subtree, placement)
        };
        match on_root(Placement::AtBusAddress) {
            Err(error) if !must => {
                log::info!("{} cannot be at its bus addresses: {error}", info.sbdf);
                on_root(Placement::Anywhere)
            }
            placed => placed,
        }
    }

    fn place_on(
        &self,
        members: &Members,
        info: &DeviceInfo,
        bus: SlotBus,
        subtree: Subtree,
        placement: Placement,
    ) -> Result<PlannedTopology, DeviceSetError> {
        let usage = self.guest.bus.bus_usage(bus);
        let mut usage = usage.ok_or_else(|| no_switch(bus))?;
        // After the bus usage was read: a slot that the guest empties in between is in one of the two.
        usage.devices.extend(self.emptied(bus));
        let mut resources = live(bus, &usage, &self.guest.root);
        // While a guest programs its bridges, devices may decode addresses that no bridge forwards.
        resources.taken.extend(self.guest.claims.all());
        if placement == Placement::Anywhere {
            // Addresses at which requests from or to this member do not reach the IOMMU.
            let peers = members.peers_of(info).map(|peer| &peer.info);
            let holes = peers.chain([info]).flat_map(|member| &member.holes);
            let holes = holes.filter_map(|hole| whole_pages(&hole.range));
            resources.taken.extend(holes);
        }
        Ok(PlannedTopology {
            bus,
            topology: assign_resources(&[subtree], resources)?,
            placement,
        })
    }
}

/// The error for a switch that the guest has emptied.
fn no_switch(bus: SlotBus) -> DeviceSetError {
    let root = match bus {
        SlotBus::Root => 0,
        SlotBus::Switch(root) => root,
    };
    PciError::NoSuchBus(Sbdf::from_devfn(0, 0, root << 3)).into()
}

impl Members {
    /// Checks the added device together with the present ones. Returns the added device, and the exposures that are
    /// accepted or uncertain.
    fn check(
        &self,
        host: &HostSnapshot,
        request: &DeviceRequest,
        departed: &BTreeSet<Sbdf>,
    ) -> Result<(DeviceInfo, Vec<Exposed>), DeviceSetError> {
        let present = self.list.iter().map(|member| member.request.clone());
        let requests: Vec<_> = present.chain([request.clone()]).collect();
        let (assignment, _) = check(host, &requests, Some(departed))?;
        let all: Vec<&DeviceInfo> = assignment.devices().collect();
        // A present device that already is at its bus addresses satisfies both placements, so its placement may
        // change.
        let running = self.list.iter().map(|member| {
            let mut running = member.info.clone();
            let domain = self.contexts.domains.get(&running.domain);
            let is_fixed = domain.is_some_and(|one| one.placement == Placement::AtBusAddress);
            let now = all.iter().find(|info| info.sbdf == running.sbdf);
            if let Some(now) = now.filter(|_| is_fixed) {
                running.placement = now.placement;
            }
            running
        });
        let running: Vec<DeviceInfo> = running.collect();
        assignment.keeps(running.iter())?;
        let present: BTreeSet<_> = running.iter().map(|info| info.sbdf).collect();
        let added = all.iter().find(|info| !present.contains(&info.sbdf));
        let added = added.map(|info| (*info).clone());
        let added = added.ok_or_else(|| DeviceSetError::Present(request.tag.clone()))?;
        Ok((added, assignment.exposures))
    }

    /// Checks that requests of the device to peers at arbitrary addresses reach the IOMMU.
    fn check_peers(&self, info: &DeviceInfo, placement: Placement) -> Result<(), DeviceSetError> {
        // BARs at their bus addresses are reachable: ports route requests directly to them, or redirect the requests.
        if placement == Placement::AtBusAddress {
            return Ok(());
        }
        for peer in self.peers_of(info) {
            let device = peer.device.as_ref().map(|device| lock(device));
            for (bar, range) in device.iter().flat_map(|device| device.peer_windows()) {
                let last = range.end().value().saturating_sub(1);
                let window = range.start().value()..=last;
                if let Some(hole) = MemoryHole::worst(&info.holes, &window) {
                    return Err(DeviceSetError::PeerHole {
                        sbdf: info.sbdf,
                        peer: peer.info.sbdf,
                        bar,
                        hole: hole.clone(),
                    });
                }
            }
        }
        Ok(())
    }
}

/// Calls `attach` again if the guest has claimed the planned addresses in the meantime. Each call plans new
/// addresses.
fn retry_on_claim_conflict<T>(
    mut attach: impl FnMut() -> Result<T, DeviceSetError>,
) -> Result<T, DeviceSetError> {
    /// Limit of retries: a guest that keeps moving its BARs can only delay its own device.
    const RETRIES: u32 = 4;
    for _ in 0..RETRIES {
        match attach() {
            Err(error) if is_claim_conflict(&error) => {
                log::info!("planning other addresses for the device: {error}")
            }
            attached => return attached,
        }
    }
    attach()
}

fn is_claim_conflict(error: &DeviceSetError) -> bool {
    match error {
        DeviceSetError::BarMapping(BarMappingError::Claim { error, .. })
        | DeviceSetError::Attach(AttachError::BarMapping(BarMappingError::Claim {
            error, ..
        })) => error.raw_os_error() == Some(libc::EEXIST),
        _ => false,
    }
}

/// Checks that the IOMMU can translate the addresses of BARs that peers reach.
fn check_bar_addresses(
    topology: &GuestTopology,
    ranges: &[AddressRange<Iova>],
) -> Result<(), DeviceSetError> {
    for endpoint in &topology.endpoints {
        for (bar, gpa) in &endpoint.bars {
            let range: Option<AddressRange<Gpa>> = AddressRange::new(*gpa, bar.size_bytes);
            if let Some(range) = range.filter(|range| !within(range, ranges)) {
                let bar = bar.index;
                return Err(DeviceSetError::BarUntranslated { bar, range });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    fn claim_error(errno: i32) -> DeviceSetError {
        let claim = BarMappingError::Claim {
            sbdf: "0000:03:00.0".parse().unwrap(),
            bar: 2,
            range: AddressRange::new(Gpa::new(1 << 32), 1 << 24).unwrap(),
            error: io::Error::from_raw_os_error(errno),
        };
        AttachError::from(claim).into()
    }

    #[test]
    fn a_claim_conflict_is_retried_a_limited_number_of_times() {
        let mut tries = 0;
        let attached = retry_on_claim_conflict(|| {
            tries += 1;
            if tries < 3 {
                Err(claim_error(libc::EEXIST))
            } else {
                Ok(tries)
            }
        });
        assert_eq!(attached.unwrap(), 3);
        for (errno, most) in [(libc::EEXIST, 5), (libc::ENOSPC, 1)] {
            let mut tries = 0;
            let refused = retry_on_claim_conflict(|| {
                tries += 1;
                Err::<(), _>(claim_error(errno))
            });
            assert!(refused.is_err());
            assert_eq!(tries, most);
        }
    }
}
