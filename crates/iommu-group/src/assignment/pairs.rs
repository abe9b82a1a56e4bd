//! Verdicts on pairs of functions.

use super::HostSnapshot;
use crate::policy::forbidding;
use crate::{Denial, Groups, RoutingModel, Sbdf, Scope, Verdict};

/// The rules for pairs of functions of a host: hardware, groups and policy.
pub struct PairRules<'h> {
    host: &'h HostSnapshot,
    routing: RoutingModel<'h>,
    groups: Groups,
    scope: Scope,
}

impl HostSnapshot {
    /// The rules for pairs of functions. With [`Scope::SameVm`] the groups of a pair may differ.
    #[must_use]
    pub fn pairs(&self, scope: Scope) -> PairRules<'_> {
        PairRules {
            host: self,
            routing: RoutingModel::found(self.topology()),
            groups: Groups::found(self.topology()),
            scope,
        }
    }
}

impl<'h> PairRules<'h> {
    /// The routing model of the host.
    #[must_use]
    pub fn routing(&self) -> &RoutingModel<'h> {
        &self.routing
    }

    /// The IOMMU groups.
    #[must_use]
    pub fn groups(&self) -> &Groups {
        &self.groups
    }

    /// Between which devices peer-to-peer is allowed.
    #[must_use]
    pub fn scope(&self) -> Scope {
        self.scope
    }

    /// Whether `initiator` may reach the BARs of `target`, by hardware, groups and policy.
    #[must_use]
    pub fn verdict(&self, initiator: Sbdf, target: Sbdf) -> Verdict {
        let hardware = self.hardware(initiator, target);
        let [from, to] = [initiator, target].map(|at| (at, self.host.policy_match(at)));
        let roles: Vec<Denial> = forbidding((from.0, &from.1), (to.0, &to.1))
            .map(|(function, rule)| Denial::Role {
                function,
                role: rule.role,
            })
            .collect();
        match hardware {
            allowed @ Verdict::Allowed { .. } if roles.is_empty() => allowed,
            Verdict::Allowed { .. } => Verdict::Denied { reasons: roles },
            Verdict::Denied { mut reasons } => {
                reasons.extend(roles);
                Verdict::Denied { reasons }
            }
        }
    }

    /// Whether `initiator` may reach the BARs of `target`, by hardware and groups.
    pub(super) fn hardware(&self, initiator: Sbdf, target: Sbdf) -> Verdict {
        self.routing
            .verdict(&self.groups, self.scope, initiator, target)
    }
}
