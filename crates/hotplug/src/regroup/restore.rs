//! Actions that restore a host to its snapshot.

use std::collections::{BTreeMap, BTreeSet};

use iommu_group::{
    Function, Goals, Groups, Kernel, Plan, PlanOptions, Purpose, RoutePreference, Sbdf, Step,
    Topology,
};

use super::action::Action;
use super::difference::Difference;
use super::lowering::{Lowering, Target, bind_bridges, prepare, restore_drivers};
use super::saga_state::Round;
use super::snapshot::Snapshot;
use super::topology_path::TopologyPath;
use super::vmm::VmDevice;

/// Actions for the differences in an undo round. The host is scanned again after each round. Empty if no action is
/// possible.
pub(super) fn actions(
    snapshot: &Snapshot,
    now: &Topology,
    differences: &[Difference],
    round: Round,
) -> Vec<Action> {
    if differences.iter().all(Difference::is_final) {
        // Mappings that were closed for peers are no difference, so the first round gives every device back.
        let again = give_back(snapshot).filter(|_| round.number == 0);
        return again.into_iter().collect();
    }
    let gone: Vec<Sbdf> = differences
        .iter()
        .filter_map(|difference| match difference {
            Difference::Gone { function } => Some(*function),
            _ => None,
        })
        .collect();
    let removed = |function: &Sbdf| {
        let was = snapshot.functions.get(function);
        was.is_some_and(|was| was.involvement.removed)
    };
    let mut actions = Vec::new();
    // Functions that did not come back in one round are considered gone; the next round restores the rest.
    if round.number.is_multiple_of(2) && gone.iter().any(removed) {
        actions.extend(bring_back(snapshot, now, &gone));
        if !round.last {
            return actions;
        }
    } else {
        let regrouped = differences
            .iter()
            .any(|difference| matches!(difference, Difference::Group { .. }));
        // After the last round no other round could bring back removed functions.
        if regrouped && !round.last {
            actions.extend(regroup(snapshot, now));
        }
    }
    // Binding a bridge may change its ACS, so drivers come before ACS.
    let bridges = snapshot.with(|involvement| involvement.removed).into_iter();
    let bridges = bridges.filter(|(_, was)| was.bridge).map(|(at, _)| at);
    actions.extend(bind_bridges(snapshot, &bridges.collect()));
    actions.extend(old_words(snapshot, now));
    actions.extend(restore_drivers(snapshot, Target::Old));
    actions.extend(give_back(snapshot));
    if !round.last {
        actions.retain(|action| is_possible(action, &gone));
    }
    actions
}

/// Plugs the devices back, and opens the mappings for peers of those that stayed; `None` without devices.
fn give_back(snapshot: &Snapshot) -> Option<Action> {
    let as_it_was = |device: &VmDevice| VmDevice {
        expose: device.expose.union(&snapshot.exposed).copied().collect(),
        ..device.clone()
    };
    let devices: Vec<VmDevice> = snapshot.assigned.iter().map(as_it_was).collect();
    (!devices.is_empty()).then_some(Action::Plug { devices })
}

/// Whether the function of an action exists.
fn is_possible(action: &Action, gone: &[Sbdf]) -> bool {
    match action {
        Action::Unbind { function }
        | Action::Attributes { function, .. }
        | Action::Remove { function }
        | Action::Bind { function, .. }
        | Action::Acs { port: function, .. }
        | Action::Egress { port: function, .. }
        | Action::Rescan { below: function } => !gone.contains(function),
        Action::Unplug { .. }
        | Action::Autoprobe { .. }
        | Action::Check { .. }
        | Action::Plug { .. } => true,
    }
}

/// Rescans for removed functions, with the recorded ACS of the ports.
fn bring_back(snapshot: &Snapshot, now: &Topology, gone: &[Sbdf]) -> Vec<Action> {
    let mut actions = prepare(snapshot);
    actions.extend(old_words(snapshot, now));
    let bridges: BTreeSet<Sbdf> = gone
        .iter()
        .filter_map(|function| nearest_above(snapshot, now, *function))
        .collect();
    actions.extend(bridges.into_iter().map(|below| Action::Rescan { below }));
    actions.retain(|action| is_possible(action, gone));
    actions.extend(bind_bridges(snapshot, &gone.iter().copied().collect()));
    actions
}

/// The nearest existing bridge above a function, by its recorded address.
fn nearest_above(snapshot: &Snapshot, now: &Topology, function: Sbdf) -> Option<Sbdf> {
    let topology_path = &snapshot.functions.get(&function)?.topology_path;
    let above = snapshot
        .functions
        .iter()
        .filter(|(_, was)| topology_path.is_below(&was.topology_path) && was.find(now).is_some());
    let nearest = above.max_by_key(|(_, was)| was.topology_path.below().len());
    nearest.map(|(above, _)| *above)
}

/// Actions that write the recorded ACS registers, the highest port first.
fn old_words(snapshot: &Snapshot, now: &Topology) -> Vec<Action> {
    let mut actions = Vec::new();
    for (port, was) in snapshot.with(|involvement| involvement.removed || involvement.awake) {
        let (Some(acs), Some(_)) = (was.acs, was.find(now)) else {
            continue;
        };
        if let Some(to) = acs.egress {
            let at = acs.vector_at;
            actions.push(Action::Egress { port, at, to });
        }
        actions.push(Action::Acs {
            port,
            at: acs.at,
            from: None,
            to: acs.control,
        });
    }
    actions
}

/// The best candidate, on a model of the host, to restore the recorded groups.
fn regroup(snapshot: &Snapshot, now: &Topology) -> Vec<Action> {
    let wanted = old_groups(snapshot, now);
    let missed = |groups: &Groups| missed(&wanted, groups, now);
    let candidates = candidates(snapshot, now, &wanted).into_iter();
    let lowered = candidates.map(|steps| Lowering::of(snapshot, now, &steps));
    let best = lowered.min_by_key(|lowered| missed(&lowered.groups()));
    // If no candidate improves the groups, no device is unplugged for it.
    let best = best.filter(|best| missed(&best.groups()) < missed(&Groups::found(now)));
    best.map_or_else(Vec::new, Lowering::finish)
}

/// The recorded groups of the existing functions, by current addresses.
fn old_groups(snapshot: &Snapshot, now: &Topology) -> Vec<Vec<Sbdf>> {
    let name = |member: &Sbdf| match snapshot.functions.get(member) {
        Some(was) => was.find(now),
        None => now.get(*member).map(Function::sbdf),
    };
    let sorted = |group: &Vec<Sbdf>| {
        let mut group: Vec<Sbdf> = group.iter().filter_map(name).collect();
        group.sort_unstable();
        group
    };
    snapshot.groups_with_devices().map(sorted).collect()
}

/// Number of devices that are not in a group with the wanted devices, and number of functions that are not in a group with
/// the wanted members. The first decides: the groups of ports do not affect isolation, and cannot always be restored.
fn missed(wanted: &[Vec<Sbdf>], groups: &Groups, now: &Topology) -> (usize, usize) {
    let is_device = |function: &Sbdf| now.is_device(*function);
    let devices =
        |group: &[Sbdf]| -> Vec<Sbdf> { group.iter().copied().filter(is_device).collect() };
    let members = wanted
        .iter()
        .flat_map(|group| group.iter().map(move |function| (group, *function)));
    let mut missed = (0, 0);
    for (group, function) in members {
        let found = groups.group_of(function).unwrap_or_default();
        missed.0 += usize::from(is_device(&function) && devices(found) != devices(group));
        missed.1 += usize::from(found != group.as_slice());
    }
    missed
}

/// Candidates to restore the recorded groups: remove and rescan once more with the recorded ACS, or a plan for the
/// recorded groups.
fn candidates(snapshot: &Snapshot, now: &Topology, wanted: &[Vec<Sbdf>]) -> Vec<Vec<Step>> {
    let mut candidates = vec![again(snapshot, now)];
    let is_device = |function: &Sbdf| now.is_device(*function);
    let partition = Groups::found(now);
    let mut goals = Goals::default();
    for group in wanted {
        let moved = group
            .iter()
            .any(|f| partition.group_of(*f) != Some(group.as_slice()));
        let devices: BTreeSet<Sbdf> = group.iter().copied().filter(is_device).collect();
        match devices.len() {
            _ if !moved => {}
            0 => {}
            1 => goals.isolate.extend(devices),
            _ => goals.join.push(devices),
        }
    }
    let everybody: BTreeSet<Sbdf> = now.functions().iter().map(Function::sbdf).collect();
    let then = snapshot.renamed(now);
    let free = |function: &Sbdf| {
        let was = then.get(function).and_then(|f| snapshot.functions.get(f));
        was.is_some_and(|was| was.involvement.unbound)
    };
    // The final ACS registers determine the routes, so any route preference is possible here. Which one affects the
    // fewest functions depends on the present routes.
    for route in [
        RoutePreference::Mildest,
        RoutePreference::Direct,
        RoutePreference::Iommu,
    ] {
        let options = PlanOptions {
            route,
            expose: everybody.clone(),
            with: everybody.clone(),
        };
        // Only functions that the transaction has unplugged may be affected.
        if let Ok(plan) = Plan::make(now, &Kernel::of(now), &goals, &options)
            && plan.unplug.iter().all(free)
        {
            candidates.push(plan.steps);
        }
    }
    candidates
}

/// Removes and finds the recorded functions once more, with the recorded ACS of the ports above.
fn again(snapshot: &Snapshot, now: &Topology) -> Vec<Step> {
    let removed = snapshot.with(|involvement| involvement.removed);
    let is_top = |topology_path: &TopologyPath| {
        let mut others = removed.iter();
        !others.any(|(_, other)| topology_path.is_below(&other.topology_path))
    };
    let tops: BTreeSet<Sbdf> = removed
        .iter()
        .filter(|(_, was)| is_top(&was.topology_path))
        .filter_map(|(_, was)| was.find(now))
        .collect();
    let below: BTreeSet<Sbdf> = tops
        .iter()
        .filter_map(|top| now.upstream(*top))
        .map(Function::sbdf)
        .collect();
    let mut steps: Vec<Step> = Vec::new();
    let words: BTreeMap<Sbdf, _> = snapshot
        .with(|involvement| involvement.awake && !involvement.removed)
        .into_iter()
        .filter_map(|(_, was)| Some((was.find(now)?, was.acs?.control)))
        .collect();
    steps.push(Step::KeepAwake {
        ports: words.keys().copied().collect(),
    });
    steps.push(Step::Remove { functions: tops });
    for (port, to) in words {
        let acs = now.get(port).and_then(|f| f.acs().registers());
        if let Some(from) = acs.map(|acs| acs.control).filter(|from| *from != to) {
            steps.push(Step::SetAcs {
                port,
                from,
                to,
                purpose: Purpose::Restore,
            });
        }
    }
    steps.push(Step::Rescan { below });
    steps
}

#[cfg(test)]
mod tests {
    use super::super::identity::Identity;
    use super::super::snapshot::{AcsState, FunctionState, Involvement};
    use super::*;

    /// Four drives, each in its own group.
    const SWITCH: &str = include_str!("../../../../resources/topologies/switch-four-nvme.json");

    fn sbdf(text: &str) -> Sbdf {
        text.parse().unwrap()
    }

    /// A snapshot in which the first two drives and their ports, which were removed since, formed this group.
    fn snapshot(now: &Topology, group: &[&str]) -> Snapshot {
        let removed = ["02:00.0", "02:01.0", "03:00.0", "04:00.0"].map(sbdf);
        let state = |function: &Function| {
            let is_removed = removed.contains(&function.sbdf());
            FunctionState {
                topology_path: TopologyPath::of(now, function.sbdf()).unwrap(),
                identity: Identity::of(function),
                bridge: function.is_bridge(),
                involvement: Involvement {
                    removed: is_removed,
                    unbound: is_removed && !function.is_bridge(),
                    awake: function.is_bridge(),
                    held: false,
                },
                driver: function.driver().map(str::to_owned),
                driver_override: String::new(),
                attributes: BTreeMap::new(),
                rest: None,
                acs: AcsState::of(function),
            }
        };
        let functions = now.hierarchies([sbdf("03:00.0")]).into_iter();
        let functions = functions.filter_map(|at| Some((at, state(now.get(at)?))));
        Snapshot {
            functions: functions.collect(),
            groups: vec![group.iter().map(|text| sbdf(text)).collect()],
            autoprobe: true,
            assigned: Vec::new(),
            exposed: BTreeSet::new(),
        }
    }

    #[test]
    fn devices_are_regrouped_even_if_ports_cannot_be() {
        let now = Topology::from_fixture(SWITCH).unwrap();
        // A rescan cannot get the third port into a group with the first two drives.
        let then = snapshot(
            &now,
            &["02:00.0", "02:01.0", "02:02.0", "03:00.0", "04:00.0"],
        );
        let actions = regroup(&then, &now);
        for function in ["02:00.0", "02:01.0"].map(sbdf) {
            assert!(
                actions.contains(&Action::Remove { function }),
                "{actions:#?}"
            );
        }
    }

    #[test]
    fn groups_that_differ_in_ports_only_are_left_alone() {
        let now = Topology::from_fixture(SWITCH).unwrap();
        let then = snapshot(&now, &["02:02.0", "03:00.0"]);
        assert_eq!(regroup(&then, &now), []);
    }
}
