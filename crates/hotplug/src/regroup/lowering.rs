//! Lowers the steps of a plan to actions.

use std::collections::{BTreeMap, BTreeSet};

use iommu_group::{AcsBits, GroupModel, Groups, Kernel, Sbdf, Step, Topology};

use super::action::Action;
use super::preview::Preview;
use super::snapshot::{FunctionState, Involvement, Snapshot};
use super::sysfs_ops::{POWER, VIRTUAL};
use super::vmm::VmDevice;

/// Lowers steps one after the other. The steps may use current addresses; `then` translates them to the recorded ones.
pub(super) struct Lowering<'a> {
    snapshot: &'a Snapshot,
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
}

/// Lowers a plan. `replug` are the unplugged devices in the form in which they come back.
pub(super) fn program(
    snapshot: &Snapshot,
    preview: &Preview<'_>,
    replug: Vec<VmDevice>,
) -> Program {
    let lowering = Lowering::of(snapshot, preview.topology, &preview.plan.steps);
    let commit = lowering.actions.len();
    let groups = lowering.groups();
    let check = lowering.check(groups.groups().iter().filter(|group| {
        let mut members = group.iter();
        members.any(|member| snapshot.functions.contains_key(member))
    }));
    let mut actions = lowering.finish();
    actions.extend(restore_drivers(snapshot, Target::New));
    actions.push(check);
    if !replug.is_empty() {
        actions.push(Action::Plug { devices: replug });
    }
    Program { actions, commit }
}

/// The first actions: unplug and unbind devices, and disable autoprobe.
pub(super) fn prepare(snapshot: &Snapshot) -> Vec<Action> {
    let mut actions = Vec::new();
    let devices = snapshot.assigned.clone();
    if !devices.is_empty() {
        actions.push(Action::Unplug { devices });
    }
    if !snapshot.with(|involvement| involvement.removed).is_empty() {
        actions.push(Action::Autoprobe { on: false });
    }
    let unbound = snapshot.with(|involvement| involvement.unbound);
    let unbound = unbound.into_iter().filter(|(_, was)| was.driver.is_some());
    actions.extend(unbound.map(|(function, _)| Action::Unbind { function }));
    actions
}

impl<'a> Lowering<'a> {
    /// Lowers steps on the current host, after the first actions.
    pub(super) fn of(snapshot: &'a Snapshot, now: &'a Topology, steps: &[Step]) -> Self {
        let mut lowering = Self {
            snapshot,
            then: snapshot.renamed(now),
            model: GroupModel::as_found(now, &Kernel::of(now)),
            removed: BTreeSet::new(),
            actions: prepare(snapshot),
        };
        steps.iter().for_each(|step| lowering.step(step));
        lowering
    }

    pub(super) fn finish(self) -> Vec<Action> {
        self.actions
    }

    /// The groups after the steps.
    pub(super) fn groups(&self) -> Groups {
        self.model.groups()
    }

    fn then(&self, function: Sbdf) -> Sbdf {
        self.then.get(&function).copied().unwrap_or(function)
    }

    fn was(&self, function: Sbdf) -> Option<&'a FunctionState> {
        self.snapshot.functions.get(&self.then(function))
    }

    fn step(&mut self, step: &Step) {
        match step {
            // Actions before and after all steps do this.
            Step::Unplug { .. } | Step::Replug { .. } => {}
            Step::KeepAwake { ports } => {
                for port in ports {
                    self.actions.push(Action::Attributes {
                        function: self.then(*port),
                        values: BTreeMap::from([(POWER.to_owned(), "on".to_owned())]),
                    });
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
                    let topology = self.model.topology();
                    self.removed.extend(topology.with_descendants(*function));
                    self.actions.push(Action::Remove {
                        function: self.then(*function),
                    });
                }
            }
            Step::Rescan { below } => {
                for bridge in below {
                    let below = self.then(*bridge);
                    self.actions.push(Action::Rescan { below });
                }
                let found = std::mem::take(&mut self.removed);
                let found = found.into_iter().map(|f| self.then(f)).collect();
                self.actions.extend(bind_bridges(self.snapshot, &found));
            }
            Step::CheckGroups { expect } => {
                let check = self.check(expect.iter());
                self.actions.push(check);
            }
        }
        step.apply(&mut self.model);
    }

    /// Checks the groups, and the registers of the recorded ports as the model has them.
    fn check<'g>(&self, groups: impl Iterator<Item = &'g Vec<Sbdf>>) -> Action {
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
            groups: groups.map(group).collect(),
            words: words.collect::<BTreeMap<Sbdf, AcsBits>>(),
        }
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
