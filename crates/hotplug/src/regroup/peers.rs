//! P2P domains of devices that come back to their virtual machines.
//!
//! A goal to join devices requests peer-to-peer DMA between those of one virtual machine. A device that is isolated, or
//! whose group is no longer that of its peers, loses its domain: no VMM would accept it as a peer.

use std::collections::BTreeSet;

use iommu_group::{Goals, Sbdf};

use super::vmm::VmDevice;

/// Determines the domains of the devices that come back.
pub(super) struct ReplugPlan<'a> {
    /// The unplugged devices, in their former form.
    pub(super) assigned: &'a [VmDevice],
    /// The devices that are not unplugged.
    pub(super) staying: &'a [VmDevice],
    /// The goals of the plan.
    pub(super) goals: &'a Goals,
    /// The groups after the plan.
    pub(super) groups: &'a [Vec<Sbdf>],
    /// Functions whose future exposure is accepted.
    pub(super) expose: &'a BTreeSet<Sbdf>,
}

impl ReplugPlan<'_> {
    /// The devices in the form in which they are plugged back.
    pub(super) fn devices(&self) -> Vec<VmDevice> {
        self.assigned.iter().map(|was| self.device(was)).collect()
    }

    fn device(&self, was: &VmDevice) -> VmDevice {
        let as_peer = |p2p: bool, domain: Option<String>| VmDevice {
            p2p,
            domain: domain.filter(|_| p2p),
            expose: was.expose.union(self.expose).copied().collect(),
            ..was.clone()
        };
        // VFIO opens a group in one IOMMU context only (linux 7.2 drivers/vfio/container.c), so a device that stays in
        // the group determines the context.
        let mut staying = self.mates(was, self.staying);
        if let Some(mate) = staying.find(|mate| self.together(was, mate)) {
            return as_peer(mate.p2p, mate.domain.clone());
        }
        if let Some(set) = self.joined(was) {
            return as_peer(true, self.domain_of(was, set));
        }
        let isolated = |device: &VmDevice| self.goals.isolate.contains(&device.function);
        let apart = self
            .mates(was, self.assigned)
            .chain(self.mates(was, self.staying))
            .filter(|mate| mate.p2p && mate.domain == was.domain && !isolated(mate))
            .any(|mate| !self.together(was, mate));
        as_peer(was.p2p && !isolated(was) && !apart, was.domain.clone())
    }

    /// The other devices of the same virtual machine.
    fn mates<'d>(
        &self,
        of: &'d VmDevice,
        devices: &'d [VmDevice],
    ) -> impl Iterator<Item = &'d VmDevice> {
        devices
            .iter()
            .filter(|mate| mate.vm == of.vm && mate.id != of.id)
    }

    fn together(&self, one: &VmDevice, other: &VmDevice) -> bool {
        let mut groups = self.groups.iter();
        groups.any(|group| group.contains(&one.function) && group.contains(&other.function))
    }

    /// The set that joins the device with another one of its virtual machine.
    fn joined(&self, device: &VmDevice) -> Option<&BTreeSet<Sbdf>> {
        let sets = self.goals.join.iter();
        let mut sets = sets.filter(|set| set.contains(&device.function));
        sets.find(|set| {
            let mut mates = self.mates(device, self.assigned);
            mates.any(|mate| set.contains(&mate.function))
        })
    }

    /// The domain of a set: that of a member, otherwise the unnamed domain, otherwise, if devices outside the set use
    /// that one, a domain with a generated name.
    fn domain_of(&self, device: &VmDevice, set: &BTreeSet<Sbdf>) -> Option<String> {
        let members: Vec<&VmDevice> = self
            .assigned
            .iter()
            .filter(|member| member.vm == device.vm && set.contains(&member.function))
            .collect();
        let outside = |domain: &Option<String>| {
            self.assigned
                .iter()
                .chain(self.staying)
                .filter(|other| other.vm == device.vm && !set.contains(&other.function))
                .any(|other| other.p2p && other.domain == *domain && !self.together(device, other))
        };
        let mut candidates: Vec<Option<String>> = members
            .iter()
            .filter(|member| member.p2p)
            .map(|member| member.domain.clone())
            .collect();
        candidates.push(None);
        let own = || {
            set.first()
                .map(|first| format!("with-{}", first.to_string().replace([':', '.'], "-")))
        };
        candidates
            .into_iter()
            .find(|domain| !outside(domain))
            .unwrap_or_else(own)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(bus: u8) -> Sbdf {
        format!("{bus:02x}:00.0").parse().unwrap()
    }

    fn device(bus: u8, peer: Option<Option<&str>>) -> VmDevice {
        VmDevice {
            vm: "web".to_owned(),
            id: format!("d{bus}"),
            function: at(bus),
            p2p: peer.is_some(),
            domain: peer.flatten().map(str::to_owned),
            expose: BTreeSet::new(),
            slot: None,
        }
    }

    const NO: Option<Option<&str>> = None;
    const UNNAMED: Option<Option<&str>> = Some(None);

    fn join(buses: &[u8]) -> Goals {
        Goals {
            join: vec![buses.iter().map(|bus| at(*bus)).collect()],
            ..Goals::default()
        }
    }

    fn isolate(buses: &[u8]) -> Goals {
        Goals {
            isolate: buses.iter().map(|bus| at(*bus)).collect(),
            ..Goals::default()
        }
    }

    fn back(
        assigned: &[VmDevice],
        staying: &[VmDevice],
        goals: &Goals,
        groups: &[&[u8]],
    ) -> Vec<VmDevice> {
        let groups: Vec<Vec<Sbdf>> = groups
            .iter()
            .map(|group| group.iter().map(|bus| at(*bus)).collect())
            .collect();
        ReplugPlan {
            assigned,
            staying,
            goals,
            groups: &groups,
            expose: &BTreeSet::new(),
        }
        .devices()
    }

    #[test]
    fn joined_devices_come_back_as_peers_and_isolated_ones_do_not() {
        let apart = [device(3, NO), device(4, NO)];
        let peers = [device(3, UNNAMED), device(4, UNNAMED)];
        assert_eq!(back(&apart, &[], &join(&[3, 4]), &[&[3, 4]]), peers);
        assert_eq!(back(&peers, &[], &isolate(&[3, 4]), &[&[3], &[4]]), apart);
    }

    #[test]
    fn an_isolated_device_leaves_the_domain_of_its_peers() {
        let peers = [device(3, UNNAMED), device(4, UNNAMED), device(5, UNNAMED)];
        let after = back(&peers, &[], &isolate(&[4]), &[&[3, 5], &[4]]);
        assert_eq!(
            after,
            [device(3, UNNAMED), device(4, NO), device(5, UNNAMED)]
        );
    }

    #[test]
    fn a_second_set_gets_its_own_domain() {
        let others = [device(5, UNNAMED), device(6, UNNAMED)];
        let newcomers = [device(3, NO), device(4, NO)];
        let after = back(&newcomers, &others, &join(&[3, 4]), &[&[3, 4], &[5, 6]]);
        let own = Some(Some("with-0000-03-00-0"));
        assert_eq!(after, [device(3, own), device(4, own)]);
    }

    #[test]
    fn a_device_that_stays_determines_the_domain() {
        let after = back(
            &[device(5, NO)],
            &[device(3, Some(Some("left"))), device(4, Some(Some("left")))],
            &join(&[3, 4, 5]),
            &[&[3, 4, 5]],
        );
        assert_eq!(after, [device(5, Some(Some("left")))]);
    }

    #[test]
    fn devices_of_different_vms_are_not_peers() {
        let mut other = device(4, NO);
        other.vm = "db".to_owned();
        let apart = [device(3, NO), other];
        assert_eq!(back(&apart, &[], &join(&[3, 4]), &[&[3, 4]]), apart);
    }
}
