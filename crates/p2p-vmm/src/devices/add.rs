//! Adds a device to a running VM.

use std::collections::BTreeSet;
use std::task::Poll;
use std::time::Instant;

use anyhow::{Context, anyhow};
use guest_topology::{GuestTopology, Subtree, assign_resources};
use hotplug::SlotBus;
use hotplug::lifecycle::{Event as Step, State};
use iommu_group::assignment::{DeviceInfo, Exposed};
use iommu_group::{Address, AddressRange, Gpa, Iova, MemoryHole, Placement, Sbdf};
use p2p_vfio::{AttachError, BarMappingError, HostDevice};
use vmm_api::{DeviceConfig, Event};
use vmm_sys_util::epoll::ControlOperation;

use super::bus_resources::{self, reserve, whole_pages};
use super::check::check_added_device;
use super::contexts::Domain;
use super::registry::{Devices, GuestDevice};
use super::slot_contents::{Opened, endpoint, prefer_bus_address};
use crate::error::VmmError;
use crate::host_reader::HostReader;
use crate::lock::lock;

/// What an added device is checked against.
pub(crate) struct AddContext<'a> {
    /// Source of host snapshots with the operator's policy.
    pub(crate) host: &'a HostReader,
    /// Functions that the VM had before.
    pub(crate) departed: &'a BTreeSet<Sbdf>,
}

/// The planned place of an added device.
struct PlannedTopology {
    bus: SlotBus,
    topology: GuestTopology,
    /// Whether its BARs are at their bus addresses.
    fixed: bool,
}

impl Devices {
    /// Adds a device with a name to the running VM. Returns its address in the guest. Pending while the guest ejects
    /// an empty switch, until `deadline`.
    pub(crate) fn add(
        &mut self,
        config: &DeviceConfig,
        context: &AddContext<'_>,
        deadline: Instant,
    ) -> Result<Poll<Sbdf>, VmmError> {
        let added = self.try_add(config, context, deadline);
        if let Err(error) = &added {
            self.pending_events.push(Event::DeviceAddFailed {
                id: config.id.clone().unwrap_or_default(),
                reason: error.to_string(),
            });
        }
        added
    }

    fn try_add(
        &mut self,
        config: &DeviceConfig,
        context: &AddContext<'_>,
        deadline: Instant,
    ) -> Result<Poll<Sbdf>, VmmError> {
        let (info, exposures) = self.check(config, context)?;
        if info.domain.is_some() && self.switch_of(&info).is_none() {
            // An empty switch holds windows that a new switch may need.
            self.process_ejected();
            if self.has_empty_switches() && Instant::now() < deadline {
                return Ok(Poll::Pending);
            }
            self.remove_empty_switches();
        }
        let attach = || self.attach(info.clone(), config.clone());
        let guest = retry_on_claim_conflict(attach)?;
        self.emit_exposures(&exposures);
        Ok(Poll::Ready(guest))
    }

    /// Checks the added device together with the present ones. Returns the added device, and the exposures that are
    /// accepted or uncertain.
    fn check(
        &self,
        config: &DeviceConfig,
        context: &AddContext<'_>,
    ) -> Result<(DeviceInfo, Vec<Exposed>), VmmError> {
        let configs: Vec<_> = self.list.iter().map(|entry| entry.config.clone()).collect();
        let checked = check_added_device(&configs, config, context.host, context.departed)?;
        let assignment = checked.assignment;
        let all: Vec<&DeviceInfo> = assignment.devices().collect();
        // A present device that already is at its bus addresses satisfies both placements, so its placement may
        // change.
        let running = self.list.iter().map(|entry| {
            let mut running = entry.info.clone();
            let domain = self.contexts.domains.get(&running.domain);
            let now = all.iter().find(|info| info.sbdf == running.sbdf);
            if let (Some(true), Some(now)) = (domain.map(|domain| domain.fixed), now) {
                running.placement = now.placement;
            }
            running
        });
        let running: Vec<DeviceInfo> = running.collect();
        assignment.keeps(running.iter())?;
        let present: BTreeSet<_> = running.iter().map(|info| info.sbdf).collect();
        let added_device = all.iter().find(|info| !present.contains(&info.sbdf));
        let added_device = added_device.map(|info| (*info).clone());
        let added_device = added_device.ok_or_else(|| {
            let text = format!("the VM already has {config}");
            VmmError::NoRoom(text)
        })?;
        Ok((added_device, assignment.exposures))
    }

    /// Opens the device and plugs it into the guest. An error undoes everything.
    fn attach(&mut self, info: DeviceInfo, config: DeviceConfig) -> Result<Sbdf, VmmError> {
        let room = self.guest.descriptors.check_room_for_device();
        room.map_err(|error| {
            VmmError::NoRoom(format!(
                "no file descriptors are left for {}: {error}\n       \
                 raise the hard limit of open files (RLIMIT_NOFILE) of p2p-vmm",
                info.sbdf
            ))
        })?;
        let must = info.placement == Placement::AtBusAddress;
        let info = prefer_bus_address(info);
        let name = info.domain.clone();
        // Declared before the device, and so dropped after it.
        let created = match self.contexts.domains.contains_key(&name) {
            true => None,
            false => {
                let added_device = (info.sbdf, info.context_kind());
                Some(self.contexts.create(name.as_ref(), &[added_device])?)
            }
        };
        let domain = created
            .as_ref()
            .or_else(|| self.contexts.domains.get(&name));
        let Some(domain) = domain else {
            let text = anyhow!("there is no IOMMU context for {}", info.sbdf);
            return Err(VmmError::failed(text));
        };
        let host = HostDevice::open(&domain.context, &info)?;
        let ranges = domain.context.iova_ranges();
        let ranges = ranges.map_err(VmmError::failed)?;
        info.reaches_memory(self.ram())?;
        self.check_translated(&info, &ranges)?;
        self.check_peers(&info, domain)?;
        if created.is_some() {
            let mapped = domain.context.map_guest(&self.guest.memory);
            mapped.map_err(VmmError::failed)?;
        }
        let clique = domain.clique;
        let place = self.place(&host, &info, must, domain)?;
        if info.domain.is_some() {
            check_bar_addresses(&place.topology, &ranges)?;
        }
        let opened = vec![Opened { host, clique }];
        let plugged = self
            .guest
            .plug(opened, place.topology, place.bus, &self.events)?;
        let Some(plugged) = plugged.into_iter().next() else {
            let text = anyhow!("no device was plugged for {}", info.sbdf);
            return Err(VmmError::failed(text));
        };
        let guest = plugged.guest;
        let mut assigned = GuestDevice::new(config, info, plugged);
        assigned.state = State::Attaching;
        if let Err(error) = self.watch_device(&assigned, || ControlOperation::Add) {
            log::error!(
                "{}: cannot wait for events of the host: {error}",
                assigned.info.sbdf
            );
        }
        if let Some(domain) = created {
            self.contexts.domains.insert(name.clone(), domain);
        }
        if let Some(domain) = self.contexts.domains.get_mut(&name) {
            domain.fixed = place.fixed;
        }
        let id = assigned.id().to_owned();
        self.list.push(assigned);
        self.advance(&id, Step::Attached);
        Ok(guest)
    }

    /// The switch of a domain, by its slot on the root bus, if members can be added to it.
    fn switch_of(&self, info: &DeviceInfo) -> Option<u8> {
        let mut peers = self.peers_of(info).filter(|peer| peer.is_in_guest());
        peers.find_map(|peer| match peer.slot.bus() {
            SlotBus::Switch(root) => Some(root),
            SlotBus::Root => None,
        })
    }

    /// Plans where the device goes in the guest's current topology: below the switch of its domain if there is one,
    /// otherwise on the root bus. The first member of a domain is placed at its bus addresses if possible, because a
    /// later member may require that.
    fn place(
        &self,
        host: &HostDevice,
        info: &DeviceInfo,
        must: bool,
        domain: &Domain,
    ) -> Result<PlannedTopology, VmmError> {
        let layout = &self.guest.layout;
        let plan =
            |bus: SlotBus, subtree: Subtree, fixed: bool| -> Result<PlannedTopology, VmmError> {
                let usage = self.guest.pci.bus_usage(bus);
                let mut usage =
                    usage.with_context(|| format!("no bridge of the guest leads to {bus:?}"))?;
                // After the bus usage was read: a slot that the guest empties in between is in one of the two.
                usage.devices.extend(self.guest.control.emptied(bus));
                let mut resources = bus_resources::live(bus, &usage, layout);
                // While a guest programs its bridges, devices may decode addresses that no bridge forwards.
                resources.taken.extend(self.guest.slots.claimed());
                if !fixed {
                    // Addresses at which requests from or to this member do not reach the IOMMU.
                    let members = self.peers_of(info).map(|peer| &peer.info);
                    let holes = members.chain([info]).flat_map(|member| &member.holes);
                    let holes = holes.filter_map(|hole| whole_pages(&hole.range));
                    resources.taken.extend(holes);
                }
                let topology = assign_resources(&[subtree], resources);
                let topology = topology.map_err(|error| VmmError::NoRoom(error.to_string()))?;
                Ok(PlannedTopology {
                    bus,
                    topology,
                    fixed,
                })
            };
        if info.domain.is_none() {
            let subtree = Subtree::Endpoint(endpoint(host, false));
            return plan(SlotBus::Root, subtree, false);
        }
        if let Some(root) = self.switch_of(info) {
            if must && !domain.fixed {
                let text = format!(
                    "the peers of {} are not at their bus addresses, which it requires\n       \
                     unplug them first, then add all of them again",
                    info.sbdf
                );
                return Err(VmmError::NoRoom(text));
            }
            let subtree = Subtree::Endpoint(endpoint(host, domain.fixed));
            return plan(SlotBus::Switch(root), subtree, domain.fixed);
        }
        let switch = |fixed: bool| Subtree::Switch {
            members: vec![endpoint(host, fixed)],
            reserve: reserve(info, layout),
        };
        match plan(SlotBus::Root, switch(true), true) {
            Err(error) if !must => {
                log::info!("{} cannot be at its bus addresses: {error}", info.sbdf);
                plan(SlotBus::Root, switch(false), false)
            }
            placed => placed,
        }
    }

    /// Checks that the device's IOMMU translates all guest memory.
    fn check_translated(
        &self,
        info: &DeviceInfo,
        ranges: &[AddressRange<Iova>],
    ) -> Result<(), VmmError> {
        let sbdf = info.sbdf;
        match self.ram().find(|ram| !within(ram, ranges)) {
            None => Ok(()),
            Some(ram) => Err(VmmError::NoRoom(format!(
                "{sbdf} cannot reach guest memory at {ram}: its IOMMU does not translate these addresses\n       \
                 give it to the VM when it starts, so that memory is laid out for it"
            ))),
        }
    }

    /// Checks that requests of the device to peers at arbitrary addresses reach the IOMMU.
    fn check_peers(&self, info: &DeviceInfo, domain: &Domain) -> Result<(), VmmError> {
        // BARs at their bus addresses are reachable: ports route requests directly to them, or redirect the requests.
        let peers = self.peers_of(info).filter(|_| !domain.fixed);
        for peer in peers {
            let device = peer.device.as_ref().map(|device| lock(device));
            for (bar, range) in device.iter().flat_map(|device| device.peer_windows()) {
                let last = range.end().value().saturating_sub(1);
                let window = range.start().value()..=last;
                if let Some(hole) = MemoryHole::worst(&info.holes, &window) {
                    let (sbdf, peer) = (info.sbdf, peer.info.sbdf);
                    return Err(VmmError::NoRoom(format!(
                        "{sbdf} cannot reach BAR {bar} of {peer} at {hole}\n       \
                         unplug {peer} first, then add both again"
                    )));
                }
            }
        }
        Ok(())
    }

    /// The other devices of the domain.
    fn peers_of(&self, info: &DeviceInfo) -> impl Iterator<Item = &GuestDevice> {
        let peers = self.list.iter();
        peers.filter(|peer| info.domain.is_some() && peer.info.domain == info.domain)
    }

    /// Guest memory.
    pub(crate) fn ram(&self) -> impl Iterator<Item = AddressRange<Gpa>> {
        self.guest.layout.ram.iter().copied()
    }
}

/// Calls `attach` again if the guest has claimed the planned addresses in the meantime. Each call plans new
/// addresses.
fn retry_on_claim_conflict<T>(
    mut attach: impl FnMut() -> Result<T, VmmError>,
) -> Result<T, VmmError> {
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

fn is_claim_conflict(error: &VmmError) -> bool {
    match error {
        VmmError::Attach(AttachError::BarMapping(BarMappingError::Claim { error, .. })) => {
            error.raw_os_error() == Some(libc::EEXIST)
        }
        _ => false,
    }
}

/// Whether every byte of a range can be translated.
fn within(range: &AddressRange<Gpa>, ranges: &[AddressRange<Iova>]) -> bool {
    let Some(range) = AddressRange::new(Iova::of_guest(range.start()), range.len_bytes()) else {
        return true;
    };
    ranges.iter().any(|usable| usable.contains(&range))
}

/// Checks that the IOMMU can translate the addresses of BARs that peers reach.
fn check_bar_addresses(
    topology: &GuestTopology,
    ranges: &[AddressRange<Iova>],
) -> Result<(), VmmError> {
    for endpoint in &topology.endpoints {
        for (bar, gpa) in &endpoint.bars {
            let range = AddressRange::new(*gpa, bar.size_bytes);
            if let Some(range) = range.filter(|range| !within(range, ranges)) {
                let text = format!(
                    "BAR {} would be at {range}, which the IOMMU does not translate",
                    bar.index
                );
                return Err(VmmError::NoRoom(text));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    fn claim_error(errno: i32) -> VmmError {
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
