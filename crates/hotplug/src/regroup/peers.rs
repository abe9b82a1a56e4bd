//! Who are peers when devices come back to their virtual machines.
//!
//! Joining devices is asking for peer-to-peer DMA between those that one virtual machine has. What is isolated, or ends up
//! in another group than its peers, is nobody's peer any more: no VMM would take it as one.

use std::collections::BTreeSet;

use iommu_group::{Goals, Sbdf};

use super::vmm::Assigned;

/// What is known of a host when devices come back.
pub(super) struct Homecoming<'a> {
    /// The devices that were unplugged, as they were.
    pub(super) assigned: &'a [Assigned],
    /// The devices that stayed in their virtual machines.
    pub(super) staying: &'a [Assigned],
    /// What was asked for.
    pub(super) goals: &'a Goals,
    /// The groups as they will be.
    pub(super) groups: &'a [Vec<Sbdf>],
    /// Functions of which it is accepted that they will be reachable without the IOMMU.
    pub(super) expose: &'a BTreeSet<Sbdf>,
}

impl Homecoming<'_> {
    /// The devices as they are to be plugged.
    pub(super) fn devices(&self) -> Vec<Assigned> {
        self.assigned.iter().map(|was| self.device(was)).collect()
    }

    fn device(&self, was: &Assigned) -> Assigned {
        let as_peer = |p2p: bool, domain: Option<String>| Assigned {
            p2p,
            domain: domain.filter(|_| p2p),
            expose: was.expose.union(self.expose).copied().collect(),
            ..was.clone()
        };
        // VFIO opens a group in one IOMMU context only (linux 7.2 drivers/vfio/container.c), so who is there decides.
        let mut staying = self.mates(was, self.staying);
        if let Some(mate) = staying.find(|mate| self.together(was, mate)) {
            return as_peer(mate.p2p, mate.domain.clone());
        }
        if let Some(set) = self.joined(was) {
            return as_peer(true, self.domain_of(was, set));
        }
        let isolated = |device: &Assigned| self.goals.isolate.contains(&device.function);
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
        of: &'d Assigned,
        devices: &'d [Assigned],
    ) -> impl Iterator<Item = &'d Assigned> {
        devices
            .iter()
            .filter(|mate| mate.vm == of.vm && mate.id != of.id)
    }

    fn together(&self, one: &Assigned, other: &Assigned) -> bool {
        let mut groups = self.groups.iter();
        groups.any(|group| group.contains(&one.function) && group.contains(&other.function))
    }

    /// The set in which a device is to be joined with another of its virtual machine.
    fn joined(&self, device: &Assigned) -> Option<&BTreeSet<Sbdf>> {
        let sets = self.goals.join.iter();
        let mut sets = sets.filter(|set| set.contains(&device.function));
        sets.find(|set| {
            let mut mates = self.mates(device, self.assigned);
            mates.any(|mate| set.contains(&mate.function))
        })
    }

    /// The domain of a set: one that a member has, else the one without a name; else, if others are in that, one of the
    /// set's own.
    fn domain_of(&self, device: &Assigned, set: &BTreeSet<Sbdf>) -> Option<String> {
        let members: Vec<&Assigned> = self
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

    fn device(bus: u8, peer: Option<Option<&str>>) -> Assigned {
        Assigned {
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
        assigned: &[Assigned],
        staying: &[Assigned],
        goals: &Goals,
        groups: &[&[u8]],
    ) -> Vec<Assigned> {
        let groups: Vec<Vec<Sbdf>> = groups
            .iter()
            .map(|group| group.iter().map(|bus| at(*bus)).collect())
            .collect();
        Homecoming {
            assigned,
            staying,
            goals,
            groups: &groups,
            expose: &BTreeSet::new(),
        }
        .devices()
    }

    #[test]
    fn what_is_joined_comes_back_as_peers_and_isolated_as_none() {
        let apart = [device(3, NO), device(4, NO)];
        let peers = [device(3, UNNAMED), device(4, UNNAMED)];
        assert_eq!(back(&apart, &[], &join(&[3, 4]), &[&[3, 4]]), peers);
        assert_eq!(back(&peers, &[], &isolate(&[3, 4]), &[&[3], &[4]]), apart);
    }

    #[test]
    fn of_three_peers_the_isolated_one_leaves_the_domain() {
        let peers = [device(3, UNNAMED), device(4, UNNAMED), device(5, UNNAMED)];
        let after = back(&peers, &[], &isolate(&[4]), &[&[3, 5], &[4]]);
        assert_eq!(
            after,
            [device(3, UNNAMED), device(4, NO), device(5, UNNAMED)]
        );
    }

    #[test]
    fn a_second_set_has_a_domain_of_its_own() {
        let others = [device(5, UNNAMED), device(6, UNNAMED)];
        let newcomers = [device(3, NO), device(4, NO)];
        let after = back(&newcomers, &others, &join(&[3, 4]), &[&[3, 4], &[5, 6]]);
        let own = Some(Some("with-0000-03-00-0"));
        assert_eq!(after, [device(3, own), device(4, own)]);
    }

    #[test]
    fn who_stays_in_the_group_decides_in_which_context_it_is() {
        let after = back(
            &[device(5, NO)],
            &[device(3, Some(Some("left"))), device(4, Some(Some("left")))],
            &join(&[3, 4, 5]),
            &[&[3, 4, 5]],
        );
        assert_eq!(after, [device(5, Some(Some("left")))]);
    }

    #[test]
    fn a_device_of_another_machine_is_no_peer() {
        let mut other = device(4, NO);
        other.vm = "db".to_owned();
        let apart = [device(3, NO), other];
        assert_eq!(back(&apart, &[], &join(&[3, 4]), &[&[3, 4]]), apart);
    }
}
