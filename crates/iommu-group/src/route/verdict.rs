//! Verdicts on routes: whether a route may be used.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{BlockReason, Route, RoutingModel};
use crate::policy::Role;
use crate::{GroupId, Groups, Sbdf};

/// Between which devices peer-to-peer is allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// Between devices of one IOMMU group.
    #[default]
    SameGroup,
    /// Between devices of one virtual machine, whatever their groups. Never the default.
    SameVm,
}

/// Required position of a peer's BAR mapping in guest-physical addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Placement {
    /// At its bus address: bridges compare the request with their windows before it reaches the IOMMU.
    AtBusAddress,
    /// Anywhere: the IOMMU translates.
    Anywhere,
}

/// A reason why peer-to-peer is denied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Denial {
    /// The two functions are in different IOMMU groups.
    DifferentGroups {
        /// The initiator's group, if its number is known.
        initiator: Option<GroupId>,
        /// The target's group, if its number is known.
        target: Option<GroupId>,
    },
    /// A function has no IOMMU group, so no IOMMU isolates it.
    NoGroup {
        /// The function.
        function: Sbdf,
    },
    /// A device's role in the policy does not allow it.
    Role {
        /// The device.
        function: Sbdf,
        /// Its role.
        role: Role,
    },
    /// The target has no memory BAR.
    NoMemory {
        /// The target.
        function: Sbdf,
    },
    /// The hardware does not route the request.
    Route(BlockReason),
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DifferentGroups {
                initiator: Some(initiator),
                target: Some(target),
            } => write!(
                f,
                "they are in different IOMMU groups, {initiator} and {target}"
            ),
            Self::DifferentGroups { .. } => f.write_str("they are in different IOMMU groups"),
            Self::NoGroup { function } => write!(f, "{function} has no IOMMU group"),
            Self::Role { function, role } => match role {
                Role::Peer => write!(f, "{function} may reach others and be reached"),
                Role::Never => write!(f, "{function} takes no part in peer-to-peer"),
                Role::TargetOnly => write!(f, "{function} may be reached but not reach others"),
                Role::InitiatorOnly => write!(f, "{function} may reach others but not be reached"),
            },
            Self::NoMemory { function } => write!(f, "{function} has no memory BAR"),
            Self::Route(block) => fmt::Display::fmt(block, f),
        }
    }
}

/// Whether one device may reach another, with the route and the placement, or all reasons why not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// The device may reach the target.
    Allowed {
        /// The route.
        route: Route,
        /// Required position of the target's BAR mapping.
        placement: Placement,
    },
    /// The device must not reach the target.
    Denied {
        /// All reasons.
        reasons: Vec<Denial>,
    },
}

impl Verdict {
    /// Whether the device may reach the target.
    #[must_use]
    pub fn is_allowed(&self) -> bool {
        matches!(self, Self::Allowed { .. })
    }
}

impl Route {
    /// Required position of a peer's BAR mapping for this route; `None` if no request arrives.
    #[must_use]
    pub fn placement(&self) -> Option<Placement> {
        match self {
            Self::SwitchLocal => Some(Placement::AtBusAddress),
            Self::SwitchLocalTranslated | Self::HostBridge => Some(Placement::Anywhere),
            Self::Blocked(_) => None,
        }
    }
}

impl RoutingModel<'_> {
    /// Whether `initiator` may reach the BARs of `target`, by hardware and groups. The policy is not included:
    /// [`PairRules::verdict`](crate::assignment::PairRules::verdict) applies it.
    #[must_use]
    pub fn verdict(&self, groups: &Groups, scope: Scope, initiator: Sbdf, target: Sbdf) -> Verdict {
        let mut reasons = Vec::new();
        let ungrouped = [initiator, target].into_iter().filter(|function| {
            groups.group_of(*function).is_none() && self.find(*function).is_some()
        });
        reasons.extend(ungrouped.map(|function| Denial::NoGroup { function }));
        if reasons.is_empty() && scope == Scope::SameGroup && !groups.together(initiator, target) {
            let number = |sbdf| self.topology().get(sbdf).and_then(crate::Function::group);
            // The numbers are those found. They do not apply to computed groups.
            let as_found = number(initiator) != number(target);
            reasons.push(Denial::DifferentGroups {
                initiator: number(initiator).filter(|_| as_found),
                target: number(target).filter(|_| as_found),
            });
        }
        let has_memory = |function: &crate::Function| {
            let bars = self.topology().bars(function);
            // Without resources from sysfs the BARs are unknown.
            bars.iter().any(crate::Bar::is_memory) || function.resources().is_empty()
        };
        if self
            .topology()
            .get(target)
            .is_some_and(|function| !has_memory(function))
        {
            reasons.push(Denial::NoMemory { function: target });
        }
        let route = self.route(initiator, target);
        if let Route::Blocked(block) = route {
            reasons.push(Denial::Route(block));
        }
        match route.placement() {
            Some(placement) if reasons.is_empty() => Verdict::Allowed { route, placement },
            _ => Verdict::Denied { reasons },
        }
    }
}
