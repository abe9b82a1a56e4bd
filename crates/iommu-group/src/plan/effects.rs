//! Computes the changes after a plan and while it is carried out.

use std::collections::{BTreeMap, BTreeSet};

use super::diff::{GroupChange, PortChange, RouteChange};
use super::direct_route::pairs;
use super::planner::Planner;
use super::{Infeasible, Plan, Preview, Refusal, RoutePreference, Step, Warning};
use crate::config::AcsBits;
use crate::{
    Exposure, Function, IsolationHole, PortType, Route, RoutingModel, Sbdf, UntranslatedReach,
};

/// Two ports beside each other, and how certain it is that the first lets requests to the second go directly.
type Opened = (Sbdf, Sbdf, UntranslatedReach);

impl<'a> Planner<'a> {
    /// Assembles the plan.
    pub(super) fn finish(mut self) -> Result<Preview<'a>, Refusal> {
        self.check_goals()?;
        let before = RoutingModel::of(&self.before);
        let after = RoutingModel::of(&self.model);
        let newly_open = self.difference(&after, &before);
        let newly_closed = self.difference(&before, &after);
        let unplug = self.unplugged(&newly_open, &newly_closed);
        let lost: BTreeSet<Sbdf> = self
            .removed
            .iter()
            .copied()
            .filter(|function| !self.model.is_present(*function))
            .collect();
        let exposures = self.exposures(&newly_open);
        let groups = self.group_changes();
        let routes = self.route_changes(&before, &after);
        let mut objections = self.objections(&exposures, &groups, &routes, &unplug, &lost);
        let ports = self.port_changes();
        let leaks = self.isolation_holes(&after);
        objections.extend(self.not_apart(&leaks));
        let boot = self.boot_argument(&ports);
        self.frame(&unplug);
        let plan = Plan {
            goals: self.goals,
            options: self.options,
            objections,
            unplug,
            steps: self.steps,
            groups,
            routes,
            ports,
            transients: self.transients,
            exposures,
            leaks,
            lost,
            boot,
        };
        let after = self.model;
        Ok(Preview { plan, after })
    }

    /// Warnings for functions that should be isolated and that still have isolation holes in the end.
    fn not_apart(&self, leaks: &[IsolationHole]) -> Vec<Warning> {
        let accepted = |function: &&Sbdf| !self.options.expose.contains(*function);
        let isolated = self.goals.isolate.iter().filter(accepted);
        isolated
            .filter_map(|function| {
                let mut from = BTreeSet::new();
                for leak in leaks {
                    if leak.exposed.contains(function) {
                        from.extend(&leak.from);
                    }
                    if leak.from.contains(function) {
                        from.extend(&leak.exposed);
                    }
                }
                from.remove(function);
                let from: Vec<Sbdf> = from.into_iter().collect();
                (!from.is_empty()).then_some(Warning::NotApart {
                    function: *function,
                    from,
                })
            })
            .collect()
    }

    /// Checks that all goals are reached in the end, and that the prediction does not depend on unknown facts.
    fn check_goals(&self) -> Result<(), Refusal> {
        if let Some(doubt) = self.doubtful() {
            return Err(doubt.into());
        }
        for set in &self.goals.join {
            if pairs(set).any(|(a, b)| !self.model.together(a, b)) {
                return Err(Infeasible::Conflict {
                    functions: set.iter().copied().collect(),
                }
                .into());
            }
        }
        for function in &self.goals.isolate {
            let mates = self.mates(&self.model, *function);
            if mates.iter().any(|mate| !self.goals.isolate.contains(mate)) {
                let functions = std::iter::once(*function).chain(mates).collect();
                return Err(Infeasible::Conflict { functions }.into());
            }
        }
        Ok(())
    }

    /// The pairs of ports beside each other, on the switches and root buses concerned, between which requests go
    /// directly in state `open` and not in state `closed`.
    fn difference(&self, open: &RoutingModel<'_>, closed: &RoutingModel<'_>) -> Vec<Opened> {
        let written: BTreeSet<Sbdf> = self
            .steps
            .iter()
            .filter_map(Step::written)
            .chain(self.removed.iter().copied())
            .filter(|port| self.port_acs(*port).is_some())
            .collect();
        let mut found = Vec::new();
        for port in written {
            let inside = self
                .topology
                .upstream(port)
                .filter(|above| above.port_type() == PortType::SwitchUpstream);
            let neighbours: Vec<&Function> = match inside {
                Some(switch) => self.topology.children(switch.sbdf()).collect(),
                None => {
                    let root = self.topology.root_bus(port).into_iter();
                    root.flat_map(|root| self.topology.on_root_bus(root))
                        .collect()
                }
            };
            let implements = self
                .port_acs(port)
                .is_some_and(|acs| inside.is_some() || acs.capability.contains(AcsBits::RR));
            // Between root ports the root complex decides.
            let reach = match inside {
                Some(_) => UntranslatedReach::Yes,
                None => UntranslatedReach::Perhaps,
            };
            found.extend(
                neighbours
                    .into_iter()
                    .map(Function::sbdf)
                    .filter(|other| *other != port && implements)
                    .filter(|other| {
                        open.goes_straight(port, *other) && !closed.goes_straight(port, *other)
                    })
                    .map(|other| (port, other, reach)),
            );
        }
        found
    }

    /// The devices that have to be released: those that are removed, and those whose requests take another route.
    fn unplugged(&self, newly_open: &[Opened], newly_closed: &[Opened]) -> BTreeSet<Sbdf> {
        let removed = self.removed.iter().copied();
        let mut unplug: BTreeSet<Sbdf> = removed.filter(|f| self.topology.is_device(*f)).collect();
        for (port, other, _) in newly_open.iter().chain(newly_closed) {
            if self.devices_at(*other).next().is_some() {
                unplug.extend(self.devices_below(*port));
            }
        }
        // The route of translated requests may change too.
        for change in self.port_changes() {
            if (change.before ^ change.after).intersects(AcsBits::DT) {
                unplug.extend(self.devices_below(change.port));
            }
        }
        unplug
    }

    /// The devices at a position beside a port: below another port, or a function there.
    fn devices_at(&self, place: Sbdf) -> impl Iterator<Item = Sbdf> {
        let itself = Some(place).filter(|place| self.topology.is_device(*place));
        itself.into_iter().chain(self.devices_below(place))
    }

    fn exposures(&self, newly_open: &[Opened]) -> Vec<Exposure> {
        let mut found: BTreeMap<(Sbdf, UntranslatedReach), [BTreeSet<Sbdf>; 2]> = BTreeMap::new();
        for (port, other, reach) in newly_open {
            for function in self.devices_at(*other) {
                let [to, through] = found.entry((function, *reach)).or_default();
                to.extend(self.devices_below(*port));
                through.insert(*port);
            }
        }
        found
            .into_iter()
            .filter(|(_, [to, _])| !to.is_empty())
            .map(|((function, reach), [to, through])| Exposure {
                function,
                to: to.into_iter().collect(),
                through: through.into_iter().collect(),
                reach,
            })
            .collect()
    }

    fn group_changes(&self) -> Vec<GroupChange> {
        let differences = self.before.groups().differences(&self.model.groups());
        differences
            .into_iter()
            .map(|difference| GroupChange {
                function: difference.sbdf,
                before: difference.here,
                after: difference.there,
            })
            .collect()
    }

    /// The routes between joined functions, and the routes from or to named functions that change.
    fn route_changes(
        &self,
        before: &RoutingModel<'_>,
        after: &RoutingModel<'_>,
    ) -> Vec<RouteChange> {
        let named = self.goals.functions();
        let concerned: BTreeSet<Sbdf> = self
            .concerned()
            .into_iter()
            .filter(|function| self.topology.is_device(*function))
            .filter(|function| self.model.is_present(*function))
            .collect();
        let mut changes = Vec::new();
        for one in &named {
            for other in concerned.iter().filter(|other| *other != one) {
                for (from, to) in [(*one, *other), (*other, *one)] {
                    // A pair of named functions occurs once for each of them.
                    if from != *one && named.contains(&from) {
                        continue;
                    }
                    let change = RouteChange {
                        from,
                        to,
                        before: before.route(from, to),
                        after: after.route(from, to),
                    };
                    let joined = self.join_set(from).is_some_and(|set| set.contains(&to));
                    if joined || change.before != change.after {
                        changes.push(change);
                    }
                }
            }
        }
        changes.sort_by_key(|change| (change.from, change.to));
        changes
    }

    pub(super) fn port_changes(&self) -> Vec<PortChange> {
        let ports = self.topology.functions().iter().map(Function::sbdf);
        ports
            .filter_map(|port| {
                let before = self.before.acs_control(port)?;
                let after = self.model.acs_control(port)?;
                let egress = self
                    .model
                    .egress(port)
                    .filter(|vector| self.before.egress(port) != Some(*vector));
                (before != after || egress.is_some()).then_some(PortChange {
                    port,
                    before,
                    after,
                    hold: self.model.acs_control_if_set_up(port) != Some(after),
                    egress,
                })
            })
            .collect()
    }

    fn isolation_holes(&self, after: &RoutingModel<'_>) -> Vec<crate::IsolationHole> {
        let concerned = self.concerned();
        let mut leaks = after.isolation_holes(&self.model.groups());
        leaks.retain(|leak| concerned.contains(&leak.switch));
        leaks
    }

    fn objections(
        &self,
        exposures: &[Exposure],
        groups: &[GroupChange],
        routes: &[RouteChange],
        unplug: &BTreeSet<Sbdf>,
        lost: &BTreeSet<Sbdf>,
    ) -> Vec<Warning> {
        let named = self.goals.functions();
        let with = &self.options.with;
        let mut objections = Vec::new();
        for exposure in exposures {
            let asked = self.goals.asks_for(exposure);
            if !asked && !self.options.expose.contains(&exposure.function) {
                objections.push(Warning::Exposes(exposure.clone()));
            }
        }
        for change in groups {
            objections.extend(self.regrouped(change, &named));
        }
        // Devices below a port whose ACS control was requested count as named.
        let below_asked: BTreeSet<Sbdf> = self
            .goals
            .acs
            .keys()
            .flat_map(|port| self.devices_below(*port))
            .collect();
        for function in unplug.iter().filter(|function| !lost.contains(function)) {
            if !named.contains(function)
                && !with.contains(function)
                && !below_asked.contains(function)
            {
                objections.push(Warning::Interrupts {
                    function: *function,
                });
            }
        }
        let unaccepted = lost.iter().filter(|function| !with.contains(function));
        objections.extend(unaccepted.map(|function| Warning::Loses {
            function: *function,
        }));
        objections.extend(self.routes_not_as_asked(routes));
        for (port, bits) in &self.goals.acs {
            let safety = AcsBits::SV | AcsBits::UF;
            let lost = self.before.acs_control(*port).unwrap_or(AcsBits::NONE) & safety & !*bits;
            if !lost.is_empty() {
                objections.push(Warning::ClearsSafety {
                    port: *port,
                    bits: lost,
                });
            }
        }
        objections.sort();
        objections
    }

    /// A warning if a function gets into a group with devices that it was not to be joined with.
    fn regrouped(&self, change: &GroupChange, named: &BTreeSet<Sbdf>) -> Option<Warning> {
        let function = change.function;
        if !self.topology.is_device(function) {
            return None;
        }
        let with = &self.options.with;
        let set = self.join_set(function);
        let stranger = |other: &Sbdf| {
            *other != function
                && self.topology.is_device(*other)
                && !change.before.contains(other)
                && !set.is_some_and(|set| set.contains(other))
        };
        let strangers: Vec<Sbdf> = change.after.iter().copied().filter(stranger).collect();
        if named.contains(&function) {
            // Functions that were not named have their own warning.
            let others: Vec<Sbdf> = strangers
                .into_iter()
                .filter(|other| named.contains(other))
                .collect();
            return (!others.is_empty()).then_some(Warning::Merges {
                function,
                with: others,
            });
        }
        let unaccepted: Vec<Sbdf> = strangers
            .into_iter()
            .filter(|other| !with.contains(other))
            .collect();
        (!with.contains(&function) && !unaccepted.is_empty()).then_some(Warning::Regroups {
            function,
            with: unaccepted,
        })
    }

    fn routes_not_as_asked(&self, routes: &[RouteChange]) -> Vec<Warning> {
        let straight = |route| matches!(route, Route::SwitchLocal | Route::SwitchLocalTranslated);
        routes
            .iter()
            .filter(|change| {
                self.join_set(change.from)
                    .is_some_and(|set| set.contains(&change.to))
            })
            .filter(|change| match self.options.route {
                RoutePreference::Mildest => false,
                RoutePreference::Direct => !straight(change.after),
                RoutePreference::Iommu => straight(change.after),
            })
            .map(|change| Warning::RouteNotAsAsked {
                from: change.from,
                to: change.to,
                route: change.after,
            })
            .collect()
    }

    /// Adds the first and last steps of every plan.
    fn frame(&mut self, unplug: &BTreeSet<Sbdf>) {
        if self.steps.is_empty() {
            return;
        }
        let topology = self.topology;
        // The ports that each step needs awake.
        let needed: Vec<BTreeSet<Sbdf>> = self
            .steps
            .iter()
            .map(|step| match step {
                Step::Rescan { below } => below.clone(),
                step => step.written().into_iter().collect(),
            })
            .map(|ports: BTreeSet<Sbdf>| {
                let ports = ports.into_iter();
                ports
                    .flat_map(|port| topology.with_ancestors(port))
                    .collect()
            })
            .collect();
        let mut steps = Vec::with_capacity(self.steps.len());
        let mut removed = BTreeSet::new();
        for (index, step) in std::mem::take(&mut self.steps).into_iter().enumerate() {
            let gone = step.removed();
            removed.extend(gone.flat_map(|function| topology.with_descendants(*function)));
            let checked = matches!(step, Step::CheckGroups { .. });
            steps.push(step);
            if checked {
                // A port that was removed and found again has lost its setting to stay awake.
                let later: BTreeSet<Sbdf> = needed
                    .iter()
                    .skip(index.saturating_add(1))
                    .flatten()
                    .copied()
                    .collect();
                let ports: BTreeSet<Sbdf> = removed.intersection(&later).copied().collect();
                if !ports.is_empty() {
                    steps.push(Step::KeepAwake { ports });
                }
                removed.clear();
            }
        }
        self.steps = steps;
        let awake = needed.into_iter().flatten().collect();
        let mut first = Vec::new();
        if !unplug.is_empty() {
            first.push(Step::Unplug {
                functions: unplug.clone(),
            });
        }
        first.push(Step::KeepAwake { ports: awake });
        self.steps.splice(0..0, first);
        let back: BTreeSet<Sbdf> = unplug
            .iter()
            .copied()
            .filter(|f| self.model.is_present(*f))
            .collect();
        if !back.is_empty() {
            self.steps.push(Step::Replug { functions: back });
        }
    }
}
