//! From the steps of a plan to actions.

use std::collections::{BTreeMap, BTreeSet};

use iommu_group::{AcsBits, GroupModel, Kernel, Plan, Sbdf, Step, Topology};

use super::action::Action;
use super::baseline::{Baseline, Part, Was};
use super::machine::{POWER, VIRTUAL};
use super::peers::Homecoming;
use super::vmm::Assigned;

/// Actions in the making. The steps may use other names of functions than the baseline: `then` has the old ones.
pub(super) struct Compiler<'a> {
    baseline: &'a Baseline,
    topology: &'a Topology,
    then: BTreeMap<Sbdf, Sbdf>,
    /// The host after the steps so far.
    model: GroupModel<'a>,
    removed: BTreeSet<Sbdf>,
    actions: Vec<Action>,
}

/// What carries a plan out.
pub(super) struct Script {
    pub(super) actions: Vec<Action>,
    /// The first action after which groups and routes are as they shall be: from here on a crash is continued.
    pub(super) commit: usize,
    /// The devices as they are to be plugged.
    pub(super) homecoming: Vec<Assigned>,
}

/// The actions that carry out a plan that was made for this topology.
///
/// `staying` are the devices of virtual machines that stay where they are, `expose` the functions of which it was accepted
/// that they will be reachable without the IOMMU.
pub(super) fn script(
    baseline: &Baseline,
    topology: &Topology,
    plan: &Plan,
    staying: &[Assigned],
    expose: &BTreeSet<Sbdf>,
) -> Script {
    let mut compiler = Compiler::new(baseline, topology);
    compiler.clear_the_way();
    for step in &plan.steps {
        compiler.step(step);
    }
    let commit = compiler.actions.len();
    let groups = after(baseline, &compiler.model);
    let check = compiler.check(&groups);
    let mut actions = compiler.actions;
    actions.extend(give_back(baseline, Target::New));
    actions.push(check);
    let homecoming = Homecoming {
        assigned: &baseline.assigned,
        staying,
        goals: &plan.goals,
        groups: &groups,
        expose,
    }
    .devices();
    if !homecoming.is_empty() {
        let devices = homecoming.clone();
        actions.push(Action::Plug { devices });
    }
    Script {
        actions,
        commit,
        homecoming,
    }
}

/// The groups of the functions concerned, on a model.
fn after(baseline: &Baseline, model: &GroupModel<'_>) -> Vec<Vec<Sbdf>> {
    let mut groups = model.groups().groups().to_vec();
    groups.retain(|group| group.iter().any(|f| baseline.functions.contains_key(f)));
    groups
}

impl<'a> Compiler<'a> {
    pub(super) fn new(baseline: &'a Baseline, topology: &'a Topology) -> Self {
        Self {
            baseline,
            topology,
            then: baseline.renamed(topology),
            model: GroupModel::as_found(topology, &Kernel::of(topology)),
            removed: BTreeSet::new(),
            actions: Vec::new(),
        }
    }

    pub(super) fn finish(self) -> Vec<Action> {
        self.actions
    }

    /// What comes before anything else: nobody uses the devices, and nobody gets what is found again.
    pub(super) fn clear_the_way(&mut self) {
        let devices = self.baseline.assigned.clone();
        if !devices.is_empty() {
            self.actions.push(Action::Unplug { devices });
        }
        if !self.baseline.with(|part| part.removed).is_empty() {
            self.actions.push(Action::Autoprobe { on: false });
        }
        let unbound = self.baseline.with(|part| part.unbound);
        let unbound = unbound.into_iter().filter(|(_, was)| was.driver.is_some());
        self.actions
            .extend(unbound.map(|(function, _)| Action::Unbind { function }));
    }

    fn then(&self, function: Sbdf) -> Sbdf {
        self.then.get(&function).copied().unwrap_or(function)
    }

    fn was(&self, function: Sbdf) -> Option<&'a Was> {
        self.baseline.functions.get(&self.then(function))
    }

    pub(super) fn step(&mut self, step: &Step) {
        match step {
            // That is done before all steps and after.
            Step::Unplug { .. } | Step::Replug { .. } => {}
            Step::KeepAwake { ports } => {
                for port in ports {
                    self.actions.push(keep_awake(self.then(*port)));
                }
            }
            Step::SetAcs { port, from, to, .. } => {
                if let Some(acs) = self.was(*port).and_then(|was| was.acs) {
                    self.actions.push(Action::Acs {
                        port: self.then(*port),
                        at: acs.at,
                        from: Some(*from),
                        to: *to,
                    });
                }
            }
            Step::SetEgress { port, to, .. } => {
                if let Some(acs) = self.was(*port).and_then(|was| was.acs) {
                    self.actions.push(Action::Egress {
                        port: self.then(*port),
                        at: acs.vector_at,
                        to: *to,
                    });
                }
            }
            Step::Remove { functions } => {
                for function in functions {
                    self.removed.insert(*function);
                    let below = self.topology.descendants(*function);
                    self.removed.extend(below.map(|f| f.sbdf()));
                    self.actions.push(Action::Remove {
                        function: self.then(*function),
                    });
                }
            }
            Step::Rescan { below } => {
                let bridges = below.iter().map(|bridge| self.then(*bridge));
                let rescans: Vec<Action> = bridges.map(|below| Action::Rescan { below }).collect();
                self.actions.extend(rescans);
                let found = std::mem::take(&mut self.removed);
                let found = found.into_iter().map(|f| self.then(f)).collect();
                self.actions.extend(settle(self.baseline, &found));
            }
            Step::CheckGroups { expect } => {
                let check = self.check(expect);
                self.actions.push(check);
            }
        }
        step.apply(&mut self.model);
    }

    /// Groups, and what the registers of the ports concerned hold at this moment.
    fn check(&self, groups: &[Vec<Sbdf>]) -> Action {
        let group = |group: &Vec<Sbdf>| {
            let mut group: Vec<Sbdf> = group.iter().map(|f| self.then(*f)).collect();
            group.sort_unstable();
            group
        };
        let words = self.then.iter().filter_map(|(now, then)| {
            let was = self.baseline.functions.get(then)?;
            was.acs?;
            let part = was.part.removed || was.part.awake;
            Some((*then, self.model.acs_control(*now).filter(|_| part)?))
        });
        Action::Check {
            groups: groups.iter().map(group).collect(),
            words: words.collect::<BTreeMap<Sbdf, AcsBits>>(),
        }
    }
}

fn keep_awake(function: Sbdf) -> Action {
    Action::Attributes {
        function,
        values: BTreeMap::from([(POWER.to_owned(), "on".to_owned())]),
    }
}

/// What is to be done with functions that were found again: bridges get their drivers, which sets their ACS again on
/// some kernels (linux 7.2 drivers/pci/pci-driver.c: `pci_dma_configure()`) and so must come first; devices stay free,
/// on kernels too that hand out what they find whatever they are told (linux 6.12 drivers/pci/bus.c).
pub(super) fn settle(baseline: &Baseline, found: &BTreeSet<Sbdf>) -> Vec<Action> {
    let all = baseline.with(|_| true);
    all.into_iter()
        .filter(|(function, _)| found.contains(function))
        .filter_map(|(function, was)| {
            if !was.bridge {
                return Some(Action::Unbind { function });
            }
            was.driver.clone().map(|driver| Action::Bind {
                function,
                driver,
                then_override: was.driver_override.clone(),
            })
        })
        .collect()
}

/// What the host is brought to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    /// What is planned: ports stay awake that the plan needs awake.
    New,
    /// What was.
    Old,
}

/// What gives functions their drivers and attributes back. Binding changes some attributes, so they come last.
pub(super) fn give_back(baseline: &Baseline, target: Target) -> Vec<Action> {
    let touched = baseline.with(Part::touched);
    let mut actions = Vec::new();
    for (function, was) in &touched {
        if let (false, Some(driver)) = (was.bridge, &was.driver) {
            actions.push(Action::Bind {
                function: *function,
                driver: driver.clone(),
                then_override: was.driver_override.clone(),
            });
        }
    }
    for (function, was) in touched {
        let mut values = was.attributes.clone();
        let lost = |name: &str| was.part.removed || name == POWER;
        values.retain(|name, _| lost(name) || was.part.unbound && name == VIRTUAL);
        if target == Target::New {
            let on = was.part.held.then(|| "on".to_owned());
            let rest = on.or_else(|| was.rest.clone());
            values.extend(rest.map(|power| (POWER.to_owned(), power)));
        }
        if !values.is_empty() {
            actions.push(Action::Attributes { function, values });
        }
    }
    // Nobody else may take a device until it has its driver.
    if !baseline.with(|part| part.removed).is_empty() {
        actions.push(Action::Autoprobe {
            on: baseline.autoprobe,
        });
    }
    actions
}
