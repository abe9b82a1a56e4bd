//! Properties that must hold for every machine, however broken.

use std::collections::BTreeSet;

use iommu_group::{
    AcsBits, Exposure, Firmware, Function, GroupModel, Groups, Kernel, PortType, Reset,
    RoutingModel, Sbdf, Scope, Topology, UntranslatedReach,
};

/// Checks that a topology and its written form are equal.
pub(crate) fn check_text(topology: &Topology) {
    let text = topology.to_fixture();
    let again = Topology::from_fixture(&text).expect("what was written is read back");
    assert_eq!(&again, topology, "what is read back is what was written");
    assert_eq!(again.to_fixture(), text, "and is written in the same words");
}

/// Checks the groups of a machine: as found, as after boot, and as after a removal and a rescan.
pub(crate) fn check_groups(topology: &Topology) {
    let kernel = Kernel::of(topology);
    let all: BTreeSet<Sbdf> = topology.functions().iter().map(|f| f.sbdf()).collect();
    // With an IOMMU in use, functions without a group are those that the IOMMU does not cover.
    let covered: BTreeSet<Sbdf> = topology
        .functions()
        .iter()
        .filter(|f| f.group().is_some() || !topology.has_groups())
        .map(|f| f.sbdf())
        .collect();

    let found = GroupModel::as_found(topology, &kernel).groups();
    assert_eq!(found, Groups::found(topology));

    for firmware in [Firmware::Cleared, Firmware::AsFound] {
        let model = GroupModel::booted(topology, &kernel, firmware);
        let partition = model.groups();
        assert_eq!(check_partition(&partition), covered, "everybody once");
        assert!(all.iter().all(|sbdf| model.is_present(*sbdf)));
        assert!(all.iter().all(|sbdf| model.reason(*sbdf).is_some()));
        assert!(model.doubts().all(|(sbdf, _)| all.contains(&sbdf)));
    }

    let mut model = GroupModel::booted(topology, &kernel, Firmware::Cleared);
    for gone in all.iter().take(6) {
        let before = model.groups();
        model.set_acs_control(*gone, AcsBits::NONE);
        model.remove(*gone);
        assert!(!model.is_present(*gone));
        assert!(model.groups().group_of(*gone).is_none());
        let stayed = check_partition(&model.groups());
        model.rescan();
        let after = model.groups();
        for a in &stayed {
            assert!(model.is_present(*a));
            for b in &stayed {
                assert_eq!(before.together(*a, *b), after.together(*a, *b), "{a} {b}");
            }
        }
        let real = |sbdf: &&Sbdf| topology.get(**sbdf).is_some_and(|f| !f.is_virtual());
        assert!(all.iter().filter(real).all(|sbdf| model.is_present(*sbdf)));
    }
}

/// The members of all groups. Checks that no function is in two groups.
pub(crate) fn check_partition(partition: &Groups) -> BTreeSet<Sbdf> {
    let mut seen = BTreeSet::new();
    for group in partition.groups() {
        assert!(!group.is_empty(), "a group without members");
        for sbdf in group {
            assert!(seen.insert(*sbdf), "{sbdf} is in two groups");
            assert_eq!(partition.group_of(*sbdf), Some(group.as_slice()));
        }
    }
    seen
}

/// Checks routes, reachability and isolation holes between all functions.
pub(crate) fn check_routes(topology: &Topology) {
    let kernel = Kernel::of(topology);
    let model = GroupModel::booted(topology, &kernel, Firmware::AsFound);
    let groups = model.groups();
    for fabric in [RoutingModel::found(topology), RoutingModel::of(&model)] {
        for a in topology.functions().iter().map(|f| f.sbdf()) {
            for b in topology.functions().iter().map(|f| f.sbdf()) {
                let verdict = fabric.verdict(&groups, Scope::SameGroup, a, b);
                let crossing = fabric.path(a, b);
                assert_eq!(crossing.route, fabric.route(a, b));
                if verdict.is_allowed() {
                    assert_ne!(a, b);
                    assert!(crossing.route.placement().is_some());
                    assert!(groups.together(a, b), "{a} {b}: allowed across groups");
                }
                // There is no answer if the ACS of a function on the path could not be read.
                let distance = |a, b| fabric.p2pdma(a, b).map(|answer| answer.distance);
                if let (Some(there), Some(back)) = (distance(a, b), distance(b, a)) {
                    assert_eq!(there, back, "{a} {b}: the way back is as long");
                }
            }
            for hole in fabric.memory_holes(a) {
                assert!(hole.range.start() <= hole.range.end());
            }
            check_exposures(topology, &fabric, &groups, a);
        }
        for leak in fabric.isolation_holes(&groups) {
            assert!(!leak.from.is_empty() && !leak.exposed.is_empty());
            for exposed in &leak.exposed {
                assert!(
                    leak.from
                        .iter()
                        .any(|from| !groups.together(*from, *exposed))
                );
            }
        }
    }
}

/// Checks that a device without an exposure that needs consent reaches no function outside its group, and that no
/// answer is unknown.
fn check_exposures(topology: &Topology, fabric: &RoutingModel<'_>, groups: &Groups, device: Sbdf) {
    let exposures = fabric.exposures(groups, &BTreeSet::from([device]));
    let free = !exposures.iter().any(Exposure::needs_consent);
    let is_device = |f: &Function| !f.is_bridge() && f.class() >> 16 != 0x06;
    if !free || !topology.get(device).is_some_and(is_device) {
        return;
    }
    for other in topology.functions().iter().filter(|f| is_device(f)) {
        let other = other.sbdf();
        let mine = other == device || groups.together(device, other);
        let certain = matches!(
            fabric.reach(device, other),
            UntranslatedReach::Yes | UntranslatedReach::Unknown
        );
        assert!(mine || !certain, "{device} reaches {other}");
    }
}

/// Checks the tree of functions and the functions that a reset of each would affect.
pub(crate) fn check_resets(topology: &Topology) {
    let kernel = Kernel::of(topology);
    let mut on_roots = 0;
    for root in topology.root_buses() {
        for function in topology.on_root_bus(root) {
            on_roots += 1 + topology.descendants(function.sbdf()).count();
        }
    }
    assert_eq!(
        on_roots,
        topology.functions().len(),
        "everybody hangs somewhere once"
    );
    for function in topology.functions() {
        let sbdf = function.sbdf();
        for child in topology.children(sbdf) {
            assert_eq!(
                topology.upstream(child.sbdf()).map(|f| f.sbdf()),
                Some(sbdf)
            );
        }
        for bar in topology.bars(function) {
            assert!(bar.index < 6);
        }
        for Reset {
            hits, hit_ports, ..
        } in topology.resets(&kernel, sbdf)
        {
            assert!(hits.contains(&sbdf), "a reset of {sbdf} hits it");
            assert!(hit_ports.iter().all(|port| hits.contains(port)));
            assert!(hits.is_sorted());
            let unique: BTreeSet<&Sbdf> = hits.iter().collect();
            assert_eq!(unique.len(), hits.len(), "nobody is hit twice");
        }
    }
}

/// Whether functions are connected as PCI Express requires. The guarantees of a plan hold for such machines.
pub(crate) fn is_lawful(topology: &Topology) -> bool {
    topology.functions().iter().all(|function| {
        let above = topology.upstream(function.sbdf());
        let above_type = above.map(Function::port_type);
        let hangs_well = match function.port_type() {
            PortType::RootPort => function.is_bridge() && above.is_none(),
            PortType::RcEndpoint | PortType::RcEventCollector => above.is_none(),
            PortType::SwitchDownstream => above_type == Some(PortType::SwitchUpstream),
            PortType::SwitchUpstream => {
                above_type.is_some_and(PortType::is_downstream) && function.is_bridge()
            }
            PortType::Endpoint | PortType::LegacyEndpoint | PortType::Conventional => {
                above_type != Some(PortType::SwitchUpstream)
            }
            _ => true,
        };
        let physical = function.physical_function();
        let is_part_of_its_device = physical.is_none_or(|physical| {
            topology
                .get(physical)
                .is_some_and(|f| !f.is_virtual() && !f.is_bridge())
                && topology.upstream(physical).map(Function::sbdf) == above.map(Function::sbdf)
                && !function.is_bridge()
        });
        let one_domain = above.is_none_or(|f| f.sbdf().domain() == function.sbdf().domain());
        hangs_well && is_part_of_its_device && one_domain
    })
}
