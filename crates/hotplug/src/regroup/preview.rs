//! The effects of a plan on a host. They are computed once, for the checks, the snapshot and the actions.

use std::collections::{BTreeMap, BTreeSet};

use iommu_group::{GroupModel, Groups, Kernel, Plan, RoutingModel, Sbdf, Step, Topology, Warning};

use super::blocker::Blocker;

/// A plan on a host.
pub(super) struct Preview<'t> {
    pub(super) topology: &'t Topology,
    pub(super) plan: &'t Plan,
    /// Reasons against the plan itself.
    pub(super) blockers: Vec<Blocker>,
    /// The functions that are removed, and found again unless they are lost.
    pub(super) removed: BTreeSet<Sbdf>,
    /// The host after the plan; `None` if the plan was made for another host.
    pub(super) after: Option<After<'t>>,
}

/// A host after a plan.
pub(super) struct After<'t> {
    model: GroupModel<'t>,
    pub(super) groups: Groups,
    pub(super) routing: RoutingModel<'t>,
}

impl<'t> Preview<'t> {
    /// Makes the plan again. The same goals must still result in the same plan, so everything that it depends on is
    /// unchanged.
    pub(super) fn of(topology: &'t Topology, plan: &'t Plan) -> Self {
        let kernel = Kernel::of(topology);
        let (blockers, after) = match Plan::preview(topology, &kernel, &plan.goals, &plan.options) {
            Err(refusal) => {
                let blocker = |reason: &iommu_group::Infeasible| Blocker::Infeasible {
                    reason: reason.to_string(),
                };
                (refusal.reasons.iter().map(blocker).collect(), None)
            }
            Ok(now) if now.plan != *plan => (vec![Blocker::Stale], None),
            Ok(now) => {
                let warnings = now.plan.objections.into_iter();
                let blockers = warnings.map(|warning| Blocker::Warning { warning });
                let after = After {
                    groups: now.after.groups(),
                    routing: RoutingModel::of(&now.after),
                    model: now.after,
                };
                (blockers.collect(), Some(after))
            }
        };
        Self {
            topology,
            plan,
            blockers,
            removed: plan.removed(topology),
            after,
        }
    }

    /// The functions that are unbound or removed.
    pub(super) fn touched(&self) -> BTreeSet<Sbdf> {
        self.plan.unplug.union(&self.removed).copied().collect()
    }

    /// The functions that are unbound or removed, and those that would be in a group with them.
    pub(super) fn touched_groups(&self) -> BTreeSet<Sbdf> {
        let touched = self.touched();
        let groups = self.after.iter().flat_map(|after| after.groups.groups());
        let groups = groups.filter(|group| group.iter().any(|at| touched.contains(at)));
        groups.flatten().chain(&touched).copied().collect()
    }

    /// The ports that are kept awake during the transaction.
    pub(super) fn awake(&self) -> BTreeSet<Sbdf> {
        let ports = self.plan.steps.iter().filter_map(|step| match step {
            Step::KeepAwake { ports } => Some(ports),
            _ => None,
        });
        ports.flatten().copied().collect()
    }

    /// The ports that stay awake after the plan: the ports with an ACS control that this or an earlier plan has written
    /// and that the kernel would reset, and the ports above them. `rest` has the ports of earlier plans.
    pub(super) fn held(&self, rest: &BTreeMap<Sbdf, String>) -> BTreeSet<Sbdf> {
        let Some(After { model, .. }) = &self.after else {
            return BTreeSet::new();
        };
        let written = self.plan.ports.iter().map(|change| change.port);
        written
            .chain(rest.keys().copied())
            .filter(|port| model.acs_control(*port) != model.acs_control_if_set_up(*port))
            .flat_map(|port| self.topology.with_ancestors(port))
            .collect()
    }

    /// Whether the plan itself warns about the exposure of a function.
    pub(super) fn warns_of(&self, function: Sbdf) -> bool {
        self.plan
            .objections
            .iter()
            .any(|objection| match objection {
                Warning::Exposes(exposure) => exposure.function == function,
                _ => false,
            })
    }
}
