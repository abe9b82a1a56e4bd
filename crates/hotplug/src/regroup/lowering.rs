//! Lowers the steps of a plan to actions.

use std::collections::{BTreeMap, BTreeSet};

use iommu_group::{AcsBits, GroupModel, Kernel, Plan, Sbdf, Step, Topology};

use super::action::Action;
use super::peers::ReplugPlan;
use super::snapshot::{FunctionState, Involvement, Snapshot};
use super::sysfs_ops::{POWER, VIRTUAL};
use super::vmm::VmDevice;

/// Builds the list of actions. The steps may use current addresses; `then` translates them to the recorded ones.
pub(super) struct Lowering<'a> {
    snapshot: &'a Snapshot,
    topology: &'a Topology,
    then: BTreeMap<Sbdf, Sbdf>,
    /// Model of the host after the steps so far.
    model: GroupModel<'a>,
    removed: BTreeSet<Sbdf>,
    actions: Vec<Action>,
}

/// The actions that carry out a plan.
pub(super) struct Program {
    pub(super) actions: Vec<Action>,
    /// Index of the first action after which groups and routes are as planned. A crash from there on is continued.
    pub(super) commit: usize,
    /// The devices in the form in which they are plugged back.
    pub(super) replug: Vec<VmDevice>,
}

/// Lowers a plan that was made for this topology.
///
/// `staying` are the devices of virtual machines that are not unplugged. `expose` are the functions whose future
/// exposure was accepted.
pub(super) fn program(
    snapshot: &Snapshot,
    topology: &Topology,
    plan: &Plan,
    staying: &[VmDevice],
    expose: &BTreeSet<Sbdf>,
) -> Program {
    let mut lowering = Lowering::new(snapshot, topology);
    lowering.prepare();
    for step in &plan.steps {
        lowering.step(step);
    }
    let commit = lowering.actions.len();
    let groups = after(snapshot, &lowering.model);
    let check = lowering.check(&groups);
    let mut actions = lowering.actions;
    actions.extend(restore_drivers(snapshot, Target::New));
    actions.push(check);
    let replug = ReplugPlan {
        assigned: &snapshot.assigned,
        staying,
        goals: &plan.goals,
        groups: &groups,
        expose,
    }
    .devices();
    if !replug.is_empty() {
        let devices = replug.clone();
        actions.push(Action::Plug { devices });
    }
    Program {
        actions,
        commit,
        replug,
    }
}

/// The groups of the recorded functions on a model.
fn after(snapshot: &Snapshot, model: &GroupModel<'_>) -> Vec<Vec<Sbdf>> {
    let mut groups = model.groups().groups().to_vec();
    groups.retain(|group| group.iter().any(|f| snapshot.functions.contains_key(f)));
    groups
}

impl<'a> Lowering<'a> {
    pub(super) fn new(snapshot: &'a Snapshot, topology: &'a Topology) -> Self {
        Self {
            snapshot,
            topology,
            then: snapshot.renamed(topology),
            model: GroupModel::as_found(topology, &Kernel::of(topology)),
            removed: BTreeSet::new(),
            actions: Vec::new(),
        }
    }

    pub(super) fn finish(self) -> Vec<Action> {
        self.actions
    }

    /// The first actions: unplug and unbind devices, and disable autoprobe.
    pub(super) fn prepare(&mut self) {
        let devices = self.snapshot.assigned.clone();
        if !devices.is_empty() {
            self.actions.push(Action::Unplug { devices });
        }
        if !self
            .snapshot
            .with(|involvement| involvement.removed)
            .is_empty()
        {
            self.actions.push(Action::Autoprobe { on: false });
        }
        let unbound = self.snapshot.with(|involvement| involvement.unbound);
        let unbound = unbound.into_iter().filter(|(_, was)| was.driver.is_some());
        self.actions
            .extend(unbound.map(|(function, _)| Action::Unbind { function }));
    }

    fn then(&self, function: Sbdf) -> Sbdf {
        self.then.get(&function).copied().unwrap_or(function)
    }

    fn was(&self, function: Sbdf) -> Option<&'a FunctionState> {
        self.snapshot.functions.get(&self.then(function))
    }

    pub(super) fn step(&mut self, step: &Step) {
        match step {
            // Actions before and after all steps do this.
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
                self.actions.extend(bind_bridges(self.snapshot, &found));
            }
            Step::CheckGroups { expect } => {
                let check = self.check(expect);
                self.actions.push(check);
            }
        }
        step.apply(&mut self.model);
    }

    /// Checks the groups, and the registers of the recorded ports as the model has them.
    fn check(&self, groups: &[Vec<Sbdf>]) -> Action {
        let group = |group: &Vec<Sbdf>| {
            let mut group: Vec<Sbdf> = group.iter().map(|f| self.then(*f)).collect();
            group.sort_unstable();
            group
        };
        let words = self.then.iter().filter_map(|(now, then)| {
            let was = self.snapshot.functions.get(then)?;
            was.acs?;
            let involvement = was.involvement.removed || was.involvement.awake;
            Some((*then, self.model.acs_control(*now).filter(|_| involvement)?))
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

/// The actions for functions that were found again. Bridges get their drivers first, because binding sets their ACS
/// again on some kernels (linux 7.2 drivers/pci/pci-driver.c: `pci_dma_configure()`). Devices are unbound, because some
/// kernels bind drivers even with autoprobe off (linux 6.12 drivers/pci/bus.c).
pub(super) fn bind_bridges(snapshot: &Snapshot, found: &BTreeSet<Sbdf>) -> Vec<Action> {
    let all = snapshot.with(|_| true);
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

/// The state that the host is brought to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    /// The planned state: ports that the plan needs awake stay awake.
    New,
    /// The state before the transaction.
    Old,
}

/// The actions that restore drivers and attributes. Attributes come last, because binding changes some of them.
pub(super) fn restore_drivers(snapshot: &Snapshot, target: Target) -> Vec<Action> {
    let touched = snapshot.with(Involvement::touched);
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
        let lost = |name: &str| was.involvement.removed || name == POWER;
        values.retain(|name, _| lost(name) || was.involvement.unbound && name == VIRTUAL);
        if target == Target::New {
            let on = was.involvement.held.then(|| "on".to_owned());
            let rest = on.or_else(|| was.rest.clone());
            values.extend(rest.map(|power| (POWER.to_owned(), power)));
        }
        if !values.is_empty() {
            actions.push(Action::Attributes { function, values });
        }
    }
    // Autoprobe stays off until all devices have their drivers.
    if !snapshot.with(|involvement| involvement.removed).is_empty() {
        actions.push(Action::Autoprobe {
            on: snapshot.autoprobe,
        });
    }
    actions
}
