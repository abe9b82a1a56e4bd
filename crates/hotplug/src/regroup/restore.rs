//! How a host is brought back to what it was.

use std::collections::{BTreeMap, BTreeSet};

use iommu_group::{
    Function, Goals, GroupModel, Groups, Kernel, Plan, PlanOptions, Purpose, RoutePreference, Sbdf,
    Step, Topology,
};

use super::action::Action;
use super::baseline::Baseline;
use super::compile::{Compiler, Target, give_back, settle};
use super::course::Round;
use super::difference::Difference;
use super::place::Place;
use super::vmm::Assigned;

/// What to do about differences in a round of undoing; the host is looked at again after each. Empty if there is
/// nothing that could be done.
pub(super) fn actions(
    baseline: &Baseline,
    now: &Topology,
    differences: &[Difference],
    round: Round,
) -> Vec<Action> {
    if differences.iter().all(Difference::is_final) {
        return Vec::new();
    }
    let gone: Vec<Sbdf> = differences
        .iter()
        .filter_map(|difference| match difference {
            Difference::Gone { function } => Some(*function),
            _ => None,
        })
        .collect();
    let removed = |function: &Sbdf| {
        let was = baseline.functions.get(function);
        was.is_some_and(|was| was.part.removed)
    };
    let mut actions = Vec::new();
    // What does not come back in one round is gone: the next is for the rest.
    if round.number.is_multiple_of(2) && gone.iter().any(removed) {
        actions.extend(bring_back(baseline, now, &gone));
        if !round.last {
            return actions;
        }
    } else {
        let regrouped = differences
            .iter()
            .any(|difference| matches!(difference, Difference::Group { .. }));
        // After the last round nobody would bring back what it has removed.
        if regrouped && !round.last {
            actions.extend(regroup(baseline, now));
        }
    }
    // Binding a bridge may set its ACS, so that comes before its word.
    let bridges = baseline.with(|part| part.removed).into_iter();
    let bridges = bridges.filter(|(_, was)| was.bridge).map(|(at, _)| at);
    actions.extend(settle(baseline, &bridges.collect()));
    actions.extend(old_words(baseline, now));
    actions.extend(give_back(baseline, Target::Old));
    if !baseline.assigned.is_empty() {
        let as_it_was = |device: &Assigned| Assigned {
            expose: device.expose.union(&baseline.exposed).copied().collect(),
            ..device.clone()
        };
        let devices = baseline.assigned.iter().map(as_it_was).collect();
        actions.push(Action::Plug { devices });
    }
    if !round.last {
        actions.retain(|action| is_possible(action, &gone));
    }
    actions
}

/// Whether the function that an action is about is there.
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

/// Finds what was removed, with the words of the ports as they were: nothing is left open.
fn bring_back(baseline: &Baseline, now: &Topology, gone: &[Sbdf]) -> Vec<Action> {
    let mut compiler = Compiler::new(baseline, now);
    compiler.clear_the_way();
    let mut actions = compiler.finish();
    actions.extend(old_words(baseline, now));
    let bridges: BTreeSet<Sbdf> = gone
        .iter()
        .filter_map(|function| nearest_above(baseline, now, *function))
        .collect();
    actions.extend(bridges.into_iter().map(|below| Action::Rescan { below }));
    actions.retain(|action| is_possible(action, gone));
    actions.extend(settle(baseline, &gone.iter().copied().collect()));
    actions
}

/// The nearest bridge above a function that is there, by its old name.
fn nearest_above(baseline: &Baseline, now: &Topology, function: Sbdf) -> Option<Sbdf> {
    let place = &baseline.functions.get(&function)?.place;
    let above = baseline.functions.iter().filter(|(_, was)| {
        was.place.root() == place.root()
            && was.place != *place
            && place.below().starts_with(was.place.below())
            && was.find(now).is_some()
    });
    let nearest = above.max_by_key(|(_, was)| was.place.below().len());
    nearest.map(|(above, _)| *above)
}

/// What writes the registers of ports as they were, the highest first.
fn old_words(baseline: &Baseline, now: &Topology) -> Vec<Action> {
    let mut actions = Vec::new();
    for (port, was) in baseline.with(|part| part.removed || part.awake) {
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

/// The way back to the old groups that comes nearest to them on a model of the host.
fn regroup(baseline: &Baseline, now: &Topology) -> Vec<Action> {
    let kernel = Kernel::of(now);
    let wanted = old_groups(baseline, now);
    let mut least = missed(&wanted, &Groups::found(now));
    let mut best = None;
    for steps in candidates(baseline, now, &kernel, &wanted) {
        let mut model = GroupModel::as_found(now, &kernel);
        steps.iter().for_each(|step| step.apply(&mut model));
        let missed = missed(&wanted, &model.groups());
        if missed < least {
            (least, best) = (missed, Some(steps));
        }
    }
    let Some(steps) = best else {
        // Nobody loses a device for what does not lead anywhere.
        return Vec::new();
    };
    let mut compiler = Compiler::new(baseline, now);
    compiler.clear_the_way();
    steps.iter().for_each(|step| compiler.step(step));
    compiler.finish()
}

/// The old groups of the functions that are there, by their names now.
fn old_groups(baseline: &Baseline, now: &Topology) -> Vec<Vec<Sbdf>> {
    let name = |member: &Sbdf| match baseline.functions.get(member) {
        Some(was) => was.find(now),
        None => now.get(*member).map(Function::sbdf),
    };
    let sorted = |group: &Vec<Sbdf>| {
        let mut group: Vec<Sbdf> = group.iter().filter_map(name).collect();
        group.sort_unstable();
        group
    };
    baseline.groups_with_devices().map(sorted).collect()
}

/// How many functions are not with those that they should be with.
fn missed(wanted: &[Vec<Sbdf>], partition: &Groups) -> usize {
    wanted
        .iter()
        .flat_map(|group| group.iter().map(move |function| (group, function)))
        .filter(|(group, function)| partition.group_of(**function) != Some(group.as_slice()))
        .count()
}

/// Ways that may lead back: to find what was removed once more, with the ports as they were; or to plan for the old
/// groups.
fn candidates(
    baseline: &Baseline,
    now: &Topology,
    kernel: &Kernel,
    wanted: &[Vec<Sbdf>],
) -> Vec<Vec<Step>> {
    let mut candidates = vec![again(baseline, now)];
    let is_device = |function: &Sbdf| now.get(*function).is_some_and(|f| !f.is_bridge());
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
    let then = baseline.renamed(now);
    let free = |function: &Sbdf| {
        let was = then.get(function).and_then(|f| baseline.functions.get(f));
        was.is_some_and(|was| was.part.unbound)
    };
    // Routes are what the words of the ports make them, and those are written in the end. Which of these touches the
    // fewest depends on how they are now.
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
        // No way is no candidate, and only what the transaction has taken from its users may be touched.
        if let Ok(plan) = Plan::make(now, kernel, &goals, &options)
            && plan.unplug.iter().all(free)
        {
            candidates.push(plan.steps);
        }
    }
    candidates
}

/// Removes what was removed before and finds it again, with the ports above as they were.
fn again(baseline: &Baseline, now: &Topology) -> Vec<Step> {
    let removed = baseline.with(|part| part.removed);
    let is_top = |place: &Place| {
        let mut others = removed.iter();
        !others.any(|(_, other)| {
            other.place != *place
                && other.place.root() == place.root()
                && place.below().starts_with(other.place.below())
        })
    };
    let tops: BTreeSet<Sbdf> = removed
        .iter()
        .filter(|(_, was)| is_top(&was.place))
        .filter_map(|(_, was)| was.find(now))
        .collect();
    let below: BTreeSet<Sbdf> = tops
        .iter()
        .filter_map(|top| now.upstream(*top))
        .map(Function::sbdf)
        .collect();
    let mut steps: Vec<Step> = Vec::new();
    let words: BTreeMap<Sbdf, _> = baseline
        .with(|part| part.awake && !part.removed)
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
