//! The verdict on a route: whether it may be used.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{BlockReason, Route, RoutingModel};
use crate::policy::Role;
use crate::{GroupId, Groups, Sbdf};

/// Between which devices peer-to-peer is allowed at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// Between devices of one IOMMU group.
    #[default]
    SameGroup,
    /// Between devices of one virtual machine, whatever their groups. It is never the default.
    SameVm,
}

/// Where a peer's window must be in guest-physical addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Placement {
    /// At its bus address: the request is compared with bridge windows before the IOMMU sees it.
    AtBusAddress,
    /// Anywhere: the IOMMU translates.
    Anywhere,
}

/// Why peer-to-peer is refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Denial {
    /// The two are in different IOMMU groups.
    DifferentGroups {
        /// The sender's, by number if it is known.
        initiator: Option<GroupId>,
        /// The receiver's.
        target: Option<GroupId>,
    },
    /// A function has no IOMMU group, so no IOMMU guards it.
    NoGroup {
        /// The function.
        function: Sbdf,
    },
    /// A device's role does not allow it.
    Role {
        /// The device.
        function: Sbdf,
        /// Its role.
        role: Role,
    },
    /// The receiver has no memory to reach.
    NoMemory {
        /// The receiver.
        function: Sbdf,
    },
    /// The hardware does not carry it.
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

/// Whether one device may reach another, and what it takes; or why not, with all reasons.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It may.
    Allowed {
        /// How.
        route: Route,
        /// Where the receiver's window must be.
        placement: Placement,
    },
    /// It may not.
    Denied {
        /// All reasons.
        reasons: Vec<Denial>,
    },
}

impl Verdict {
    /// Whether it may.
    #[must_use]
    pub fn is_allowed(&self) -> bool {
        matches!(self, Self::Allowed { .. })
    }
}

impl Route {
    /// Where a peer's window must be for this route; `None` if nothing arrives.
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
    /// Whether `initiator` may reach the BARs of `target`, by hardware and groups. The policy is not asked:
    /// [`PairRules::verdict`](crate::assignment::PairRules::verdict) does that.
    #[must_use]
    pub fn verdict(&self, groups: &Groups, scope: Scope, initiator: Sbdf, target: Sbdf) -> Verdict {
        let mut reasons = Vec::new();
        let ungrouped = [initiator, target].into_iter().filter(|function| {
            groups.group_of(*function).is_none() && self.find(*function).is_some()
        });
        reasons.extend(ungrouped.map(|function| Denial::NoGroup { function }));
        if reasons.is_empty() && scope == Scope::SameGroup && !groups.together(initiator, target) {
            let number = |sbdf| self.topology().get(sbdf).and_then(crate::Function::group);
            // The numbers are those found; they say nothing about groups that were computed.
            let as_found = number(initiator) != number(target);
            reasons.push(Denial::DifferentGroups {
                initiator: number(initiator).filter(|_| as_found),
                target: number(target).filter(|_| as_found),
            });
        }
        let has_memory = |function: &crate::Function| {
            let bars = self.topology().bars(function);
            // Without the file that has the sizes nothing is known of BARs.
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
