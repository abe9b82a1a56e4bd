//! The P2P state of the VM: domains, BARs mapped for peers, and the host's verdict on every pair.

use std::collections::BTreeMap;

use iommu_group::assignment::{DeviceInfo, DomainName, HostSnapshot};
use iommu_group::{Address, Route, Sbdf, Scope, Sysfs, Verdict};
use p2p_vfio::{AssignedDevice, DeviceSet, Interface};
use vmm_api::{
    DeviceConfig, Failure, P2pBackend, P2pDomain, P2pExposure, P2pInfo, P2pInterface, P2pMember,
    P2pMemory, P2pRoute, P2pVerdict, P2pWindow,
};

use super::controller::VmController;
use crate::devices::{accepted, domain_of};
use crate::error::VmmError;

impl VmController {
    /// The current state. Routes are computed from a new host snapshot.
    pub(super) fn p2p(&self) -> Result<P2pInfo, VmmError> {
        let config = self.config.as_ref().ok_or(Failure::NotCreated)?;
        let host = self.context.host_reader.view()?;
        let exposures = exposures(&host, &config.devices)?;
        let mut peers = Vec::new();
        let mut others = Vec::new();
        for device in &config.devices {
            let id = device.id.clone().unwrap_or_default();
            match domain_of(device) {
                Some(domain) => peers.push(self.peer(&host, id, device, domain)?),
                None => others.push(id),
            }
        }
        let mut domains: BTreeMap<DomainName, Vec<P2pMember>> = BTreeMap::new();
        for peer in &peers {
            let members = domains.entry(peer.domain.clone()).or_default();
            members.push(peer.member.clone());
        }
        let domains = domains.into_iter().map(|(name, members)| P2pDomain {
            name: match name {
                DomainName::Unnamed => None,
                DomainName::Named(name) => Some(name),
            },
            members,
        });
        Ok(P2pInfo {
            domains: domains.collect(),
            others,
            routes: routes(&host, &peers),
            exposures,
            backend: self.backend(),
            memory: self.memory(),
            unshared_transfers_fail_silently: self
                .running
                .as_ref()
                .is_some_and(|running| running.machine.unshared_transfers_fail_silently()),
        })
    }

    fn memory(&self) -> Vec<P2pMemory> {
        let set = self.running.as_ref();
        let set = set.map(|running| running.machine.devices.set());
        let ram = set.map(DeviceSet::memory).unwrap_or_default();
        ram.into_iter()
            .map(|ram| P2pMemory {
                base: ram.start().value(),
                size: ram.len_bytes(),
            })
            .collect()
    }

    fn backend(&self) -> Option<P2pBackend> {
        let set = self.running.as_ref()?.machine.devices.set();
        set.interface(|choice| P2pBackend {
            interface: match choice.interface {
                Interface::Type1 => P2pInterface::Type1,
                Interface::Iommufd => P2pInterface::Iommufd,
            },
            reason: choice.reason.to_string(),
        })
    }

    fn peer(
        &self,
        host: &HostSnapshot,
        id: String,
        device: &DeviceConfig,
        domain: DomainName,
    ) -> Result<Peer, VmmError> {
        let info = DeviceInfo::read(
            host,
            &Sysfs::default(),
            device.directory()?,
            Some(domain.clone()),
        )?;
        let set = self.running.as_ref();
        let set = set.map(|running| running.machine.devices.set());
        let in_guest = set.and_then(|set| set.member(&id));
        let windows = set.and_then(|set| set.with_device(&id, |device| windows(device)));
        let member = P2pMember {
            id,
            host: info.sbdf.to_string(),
            group: info.group.0,
            bdf: in_guest.map(|member| member.guest.to_string()),
            windows: windows.unwrap_or_default(),
        };
        Ok(Peer {
            member,
            domain,
            info,
        })
    }
}

/// A device in a P2P domain.
struct Peer {
    member: P2pMember,
    domain: DomainName,
    info: DeviceInfo,
}

fn windows(device: &AssignedDevice) -> Vec<P2pWindow> {
    let windows = device.peer_windows().map(|(bar, range)| P2pWindow {
        bar,
        base: range.start().value(),
        size: range.len_bytes(),
    });
    windows.collect()
}

/// Functions that are reachable without the IOMMU now, accepted or not.
fn exposures(host: &HostSnapshot, devices: &[DeviceConfig]) -> Result<Vec<P2pExposure>, VmmError> {
    let mut names = BTreeMap::new();
    for device in devices {
        let info = DeviceInfo::read(host, &Sysfs::default(), device.directory()?, None)?;
        names.insert(info.sbdf, device.id.clone().unwrap_or_default());
    }
    let own = names.keys().copied().collect();
    let exposures = host.exposures(&own, &accepted(devices.iter()));
    let list = |functions: &[Sbdf]| functions.iter().map(Sbdf::to_string).collect();
    let exposures = exposures.into_iter().map(|exposed| P2pExposure {
        id: names.get(&exposed.device).cloned().unwrap_or_default(),
        function: exposed.exposure.function.to_string(),
        to: list(&exposed.exposure.to),
        through: list(&exposed.exposure.through),
        certain: exposed.exposure.needs_consent(),
        accepted: exposed.consent.map(|consent| consent.to_string()),
    });
    Ok(exposures.collect())
}

fn routes(host: &HostSnapshot, peers: &[Peer]) -> Vec<P2pRoute> {
    let rules = host.pairs(Scope::SameGroup);
    let pairs = peers
        .iter()
        .flat_map(|from| peers.iter().map(move |to| (from, to)))
        .filter(|(from, to)| from.info.sbdf != to.info.sbdf);
    pairs
        .map(|(from, to)| {
            let (verdict, route, reasons) = match rules.verdict(from.info.sbdf, to.info.sbdf) {
                Verdict::Denied { reasons } => {
                    let reasons = reasons.iter().map(ToString::to_string).collect();
                    (P2pVerdict::Denied, None, reasons)
                }
                Verdict::Allowed { route, .. } if from.domain == to.domain => {
                    (P2pVerdict::Allowed, name_of(&route), Vec::new())
                }
                Verdict::Allowed { route, .. } => {
                    let reason = "they are in different P2P domains of this VM".to_owned();
                    (P2pVerdict::Apart, name_of(&route), vec![reason])
                }
            };
            P2pRoute {
                from: from.member.id.clone(),
                to: to.member.id.clone(),
                verdict,
                route,
                reasons,
            }
        })
        .collect()
}

fn name_of(route: &Route) -> Option<String> {
    let name = match route {
        Route::SwitchLocal => "switch-local",
        Route::SwitchLocalTranslated => "switch-local-translated",
        Route::HostBridge => "host-bridge",
        Route::Blocked(_) => return None,
    };
    Some(name.to_owned())
}
