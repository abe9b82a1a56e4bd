//! What must hold for every machine, on machines drawn from seeds.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot set up its machine should stop"
)]

use std::collections::BTreeSet;

use iommu_group::{AcsBits, Firmware, GroupModel, Groups, Kernel, Sbdf, Topology};
use test_machine::Machine;
use test_machine::random::{self, Random};

/// Calls `check` with machines of many seeds; a failure names its seed.
fn for_machines(seeds: u64, check: impl Fn(&Topology, &mut Random)) {
    for seed in 0..seeds {
        let mut random = Random::new(seed);
        let text = random::machine(&mut random);
        let topology = Machine::new(&text).topology();
        let guard = OnPanic(seed, &text);
        check(&topology, &mut random);
        std::mem::forget(guard);
    }
}

struct OnPanic<'a>(u64, &'a str);

impl Drop for OnPanic<'_> {
    fn drop(&mut self) {
        eprintln!("seed {}:{}", self.0, self.1);
    }
}

fn booted(topology: &Topology) -> GroupModel<'_> {
    GroupModel::booted(topology, &Kernel::of(topology), Firmware::Cleared)
}

fn everybody(partition: &Groups) -> Vec<Sbdf> {
    let mut all: Vec<Sbdf> = partition.groups().iter().flatten().copied().collect();
    all.sort();
    all
}

#[test]
fn a_partition_is_a_partition() {
    for_machines(300, |topology, _| {
        let partition = booted(topology).groups();
        let all: Vec<Sbdf> = topology.functions().iter().map(|f| f.sbdf()).collect();
        assert_eq!(everybody(&partition), all, "everybody once");
        for group in partition.groups() {
            for a in group {
                assert!(group.iter().all(|b| partition.together(*a, *b)));
                assert_eq!(partition.group_of(*a).unwrap(), group);
            }
        }
    });
}

#[test]
fn every_group_that_is_shared_is_explained_by_a_member() {
    for_machines(300, |topology, _| {
        let model = booted(topology);
        for group in model.groups().groups() {
            let founders = group
                .iter()
                .filter(|f| model.reason(**f) == Some(iommu_group::Reason::New))
                .count();
            assert_eq!(founders, 1, "{group:?}");
        }
    });
}

#[test]
fn a_scan_without_a_removal_changes_nothing() {
    for_machines(200, |topology, _| {
        let mut model = booted(topology);
        let before = model.groups();
        model.rescan();
        assert_eq!(model.groups(), before);
    });
}

#[test]
fn those_that_stay_stay_together() {
    for_machines(300, |topology, random| {
        let mut model = booted(topology);
        for _ in 0..4 {
            let before = model.groups();
            for _ in 0..random.below(3) {
                let port = topology.functions()[random.below(topology.functions().len())].sbdf();
                let bits = AcsBits::from_bits_retain(u16::try_from(random.below(0x80)).unwrap());
                model.set_acs_control(port, bits);
            }
            let gone = topology.functions()[random.below(topology.functions().len())].sbdf();
            model.remove(gone);
            let stayed: BTreeSet<Sbdf> = everybody(&model.groups()).into_iter().collect();
            model.rescan();
            let after = model.groups();
            for a in &stayed {
                for b in &stayed {
                    assert_eq!(before.together(*a, *b), after.together(*a, *b), "{a} {b}");
                }
            }
            assert!(stayed.iter().all(|f| model.is_present(*f)));
        }
    });
}

#[test]
fn to_remove_everything_is_to_boot_again() {
    for_machines(300, |topology, random| {
        // Functions that hide that they are not alone count otherwise after a scan; leave those machines out.
        let honest = topology.functions().iter().all(|f| {
            f.is_virtual()
                || !f.is_multifunction()
                || f.config().header.as_ref().unwrap().multifunction
        });
        // And what a device shares ids with may come after it.
        let aliases = topology
            .functions()
            .iter()
            .any(|f| f.ids().vendor == 0x1b4b);
        if !honest || aliases {
            return;
        }
        let mut model = booted(topology);
        let fresh: Vec<_> = model.groups().groups().to_vec();
        for function in topology.functions() {
            let bits = AcsBits::from_bits_retain(u16::try_from(random.below(0x80)).unwrap());
            model.set_acs_control(function.sbdf(), bits & AcsBits::REQUIRED);
        }
        for function in topology.functions() {
            model.remove(function.sbdf());
        }
        assert_eq!(model.groups().groups().len(), 0);
        model.rescan();
        let again = model.groups();
        let virtuals = |group: &Vec<Sbdf>| -> Vec<Sbdf> {
            let real = |f: &&Sbdf| !topology.get(**f).unwrap().is_virtual();
            group.iter().filter(real).copied().collect()
        };
        let expected: Vec<_> = fresh
            .iter()
            .map(virtuals)
            .filter(|g| !g.is_empty())
            .collect();
        assert_eq!(again.groups(), expected);
    });
}

#[test]
fn files_of_machines_read_back() {
    for_machines(50, |topology, _| {
        let text = topology.to_fixture();
        assert_eq!(Topology::from_fixture(&text).unwrap(), *topology);
    });
}

#[test]
fn damaged_files_are_refused_or_read_but_never_panic() {
    for_machines(30, |topology, random| {
        let text = topology.to_fixture();
        for _ in 0..20 {
            let mut bytes = text.clone().into_bytes();
            for _ in 0..1 + random.below(4) {
                let at = random.below(bytes.len());
                bytes[at] = random.pick(b"0123456789abcdef:.\"{},- ");
            }
            let Ok(damaged) = String::from_utf8(bytes) else {
                continue;
            };
            if let Ok(read) = Topology::from_fixture(&damaged) {
                let mut model = booted(&read);
                if let Some(function) = read.functions().first() {
                    model.remove(function.sbdf());
                }
                model.rescan();
                let _ = model.groups();
            }
        }
    });
}
