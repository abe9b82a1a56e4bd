//! Planner: the state of the machine after the steps so far.

use std::collections::{BTreeMap, BTreeSet};

use super::diff::Transient;
use super::{Goals, Infeasible, PlanOptions, Purpose, Refusal, Step};
use crate::config::{Acs, AcsBits, AcsRegisters, EgressVector, PortType, Unreadable};
use crate::kernel::Kernel;
use crate::{Function, GroupModel, RoutingModel, Sbdf, Topology, Uncertainty};

/// A plan under construction.
pub(super) struct Planner<'a> {
    pub(super) topology: &'a Topology,
    pub(super) goals: Goals,
    pub(super) options: PlanOptions,
    /// The machine as it was found.
    pub(super) before: GroupModel<'a>,
    /// The machine after the steps so far.
    pub(super) model: GroupModel<'a>,
    pub(super) steps: Vec<Step>,
    /// Every function that is removed by any step.
    pub(super) removed: BTreeSet<Sbdf>,
    pub(super) transients: Vec<Transient>,
    /// The ports that are opened for a rescan, and the control value of each.
    pub(super) opened: BTreeMap<Sbdf, AcsBits>,
}

impl<'a> Planner<'a> {
    pub(super) fn new(
        topology: &'a Topology,
        kernel: &Kernel,
        goals: &Goals,
        options: &PlanOptions,
    ) -> Result<Self, Refusal> {
        let goals = united(goals);
        let reasons = unfit(topology, &goals);
        if !reasons.is_empty() {
            return Err(Refusal { reasons });
        }
        let before = GroupModel::as_found(topology, kernel);
        Ok(Self {
            topology,
            goals,
            options: options.clone(),
            model: before.clone(),
            before,
            steps: Vec::new(),
            removed: BTreeSet::new(),
            transients: Vec::new(),
            opened: BTreeMap::new(),
        })
    }

    /// Adds a step and applies it to the model.
    pub(super) fn step(&mut self, step: Step) {
        let removed = step.removed();
        let removed = removed.flat_map(|function| self.topology.with_descendants(*function));
        self.removed.extend(removed);
        step.apply(&mut self.model);
        self.steps.push(step);
    }

    /// Adds a step that writes an ACS control register, unless it has the value already. If the step clears egress
    /// control for a route, a further step clears the egress control vector: each bit is 0 unless it was written (PCIe
    /// r6.0 §7.7.11.4).
    pub(super) fn set_acs_word(&mut self, port: Sbdf, to: AcsBits, purpose: Purpose) {
        let from = self.control(port);
        if from == to {
            return;
        }
        self.step(Step::SetAcs {
            port,
            from,
            to,
            purpose,
        });
        let off = from.contains(AcsBits::EC) && !to.contains(AcsBits::EC);
        let own = matches!(purpose, Purpose::CloseRoute | Purpose::OpenRoute);
        if off
            && own
            && let Some(vector) = self.model.egress(port)
        {
            self.set_egress_vector(port, vector.cleared());
        }
    }

    /// Adds a step that writes an egress control vector, unless it has the value already.
    pub(super) fn set_egress_vector(&mut self, port: Sbdf, to: EgressVector) {
        if let Some(from) = self.model.egress(port).filter(|from| *from != to) {
            self.step(Step::SetEgress { port, from, to });
        }
    }

    /// Adds a step that compares the kernel's groups with those of the model.
    pub(super) fn check_groups(&mut self) {
        let concerned: BTreeSet<Sbdf> = self.concerned();
        let expect = self
            .model
            .groups()
            .groups()
            .iter()
            .filter(|group| group.iter().any(|function| concerned.contains(function)))
            .cloned()
            .collect();
        self.step(Step::CheckGroups { expect });
    }

    /// All functions below the root ports of the named functions.
    pub(super) fn concerned(&self) -> BTreeSet<Sbdf> {
        let ports = self.goals.acs.keys().copied();
        let named = self.goals.functions().into_iter().chain(ports);
        self.topology.hierarchies(named)
    }

    /// The ACS registers of a port that decides routes: a root port or downstream port.
    pub(super) fn port_acs(&self, port: Sbdf) -> Option<&'a AcsRegisters> {
        let function = self.topology.get(port)?;
        if !function.port_type().is_downstream() {
            return None;
        }
        function.acs().registers()
    }

    pub(super) fn control(&self, port: Sbdf) -> AcsBits {
        self.model.acs_control(port).unwrap_or(AcsBits::NONE)
    }

    pub(super) fn routing(&self) -> RoutingModel<'a> {
        RoutingModel::of(&self.model)
    }

    /// The set of functions that a function is to be joined with, including itself.
    pub(super) fn join_set(&self, function: Sbdf) -> Option<&BTreeSet<Sbdf>> {
        self.goals.join.iter().find(|set| set.contains(&function))
    }

    /// The functions below a port that are present and are not ports.
    pub(super) fn devices_below(&self, port: Sbdf) -> impl Iterator<Item = Sbdf> {
        self.topology
            .descendants(port)
            .filter(|function| !function.is_bridge())
            .map(Function::sbdf)
            .filter(|sbdf| self.model.is_present(*sbdf))
    }

    /// The function at or above `function` that is directly below `bridge`.
    pub(super) fn child_towards(&self, bridge: Sbdf, function: Sbdf) -> Option<Sbdf> {
        let mut path = self.topology.with_ancestors(function);
        path.find(|at| self.topology.upstream(*at).map(Function::sbdf) == Some(bridge))
    }

    /// The other devices in the group of a function.
    pub(super) fn mates(&self, model: &GroupModel<'_>, function: Sbdf) -> Vec<Sbdf> {
        self.topology
            .functions()
            .iter()
            .filter(|other| !other.is_bridge() && other.sbdf() != function)
            .map(Function::sbdf)
            .filter(|other| model.together(function, *other))
            .collect()
    }

    /// The reason why the model's groups are uncertain, if they are.
    pub(super) fn doubtful(&self) -> Option<Infeasible> {
        let mut unreadable = Vec::new();
        let mut functions = Vec::new();
        let mut reason = Unreadable::Unprivileged;
        for (sbdf, doubt) in self.model.doubts() {
            match doubt {
                Uncertainty::Unreadable(hidden) => {
                    unreadable.push(sbdf);
                    reason = hidden;
                }
                Uncertainty::AliasesInDeviceMemory => functions.push(sbdf),
            }
        }
        if !unreadable.is_empty() {
            return Some(Infeasible::Unreadable {
                functions: unreadable,
                hidden: reason,
            });
        }
        (!functions.is_empty()).then_some(Infeasible::Doubtful { functions })
    }
}

/// Merges sets that share a function. Sets of fewer than two functions are kept as they are.
fn united(goals: &Goals) -> Goals {
    let mut join: Vec<BTreeSet<Sbdf>> = Vec::new();
    for set in &goals.join {
        let mut set = set.clone();
        join.retain(|other| {
            let apart = other.is_disjoint(&set);
            if !apart {
                set.extend(other);
            }
            apart
        });
        join.push(set);
    }
    join.sort();
    Goals {
        join,
        ..goals.clone()
    }
}

/// The reasons why goals are invalid or cannot be evaluated.
fn unfit(topology: &Topology, goals: &Goals) -> Vec<Infeasible> {
    let named = goals.functions();
    let mut reasons = Vec::new();
    if named.is_empty() && goals.acs.is_empty() {
        return vec![Infeasible::NoGoal];
    }
    for set in &goals.join {
        if let (Some(function), 1) = (set.first(), set.len()) {
            reasons.push(Infeasible::Alone {
                function: *function,
            });
        }
        let both = set
            .iter()
            .filter(|function| goals.isolate.contains(function));
        reasons.extend(both.map(|function| Infeasible::Contradiction {
            function: *function,
        }));
    }
    for function in named.iter().chain(goals.acs.keys()) {
        if topology.get(*function).is_none() {
            reasons.push(Infeasible::Missing {
                function: *function,
            });
        }
    }
    if !topology.has_groups() {
        reasons.push(Infeasible::NoIommu);
        return reasons;
    }
    for function in named.iter().filter_map(|sbdf| topology.get(*sbdf)) {
        let function_at = function.sbdf();
        if function.is_bridge() {
            reasons.push(Infeasible::NotADevice {
                function: function_at,
            });
        } else if function.group().is_none() {
            reasons.push(Infeasible::NoGroup {
                function: function_at,
            });
        }
    }
    let mut unreadable: BTreeMap<Unreadable, Vec<Sbdf>> = BTreeMap::new();
    for sbdf in topology.hierarchies(named.iter().chain(goals.acs.keys()).copied()) {
        // A device that was not named matters only if groups depend on it. The model reports that as uncertain.
        let matters = |function: &&Function| {
            function.is_bridge()
                || named.contains(&sbdf)
                || topology.children(sbdf).next().is_some()
        };
        if let Some(hidden) = topology.get(sbdf).filter(matters).and_then(hidden) {
            unreadable.entry(hidden).or_default().push(sbdf);
        }
    }
    reasons.extend(
        unreadable
            .into_iter()
            .map(|(hidden, functions)| Infeasible::Unreadable { functions, hidden }),
    );
    reasons
}

/// The reason why the type or the ACS of a function is unknown.
fn hidden(function: &Function) -> Option<Unreadable> {
    match function.acs() {
        Acs::Unknown(hidden) => Some(*hidden),
        _ if function.port_type() == PortType::Unknown => function.config().hidden,
        _ => None,
    }
}
