//! Plans that change IOMMU groups and routes at run time. A plan is computed here and carried out by the caller.
//!
//! Linux computes a group once, when a function is added. To change groups, functions have to be removed and added
//! again while a port above them lacks an ACS control that Linux requires. Routes follow the ACS control registers of
//! the ports immediately. Therefore a plan has these phases:
//!
//! ```text
//! unplug ─ keep awake ─ close routes ─┬─ remove ─ open a port ─ rescan ─ restore ─ check ─┬─ open routes ─ replug
//!                                     └─────────────── once for every change ─────────────┘
//! ```
//!
//! At no time does a port let requests pass from an active device to one that was not named. If possible, the port
//! lacks completion redirect during the rescan: requests stay redirected, so there are no completions between peers
//! either.

mod acs;
mod boot;
mod diff;
mod direct_route;
mod document;
mod effects;
mod goal;
mod isolate;
mod join;
mod planner;
mod refusal;
mod step;
mod warning;

pub use boot::BootArgument;
pub use diff::{GroupChange, PortChange, RouteChange, Transient};
pub use document::PlanError;
pub use goal::{Goals, PlanOptions, RoutePreference};
pub use refusal::{Infeasible, Refusal};
pub use step::{Purpose, Step};
pub use warning::Warning;

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::kernel::Kernel;
use crate::{Exposure, GroupModel, IsolationHole, Sbdf, Topology};
use planner::Planner;

/// The steps that reach the goals, and all changes during and after the plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// The goals of the plan.
    pub goals: Goals,
    /// The options of the plan.
    pub options: PlanOptions,
    /// Warnings that have to be accepted before the plan may be carried out. A plan with any of them is refused.
    pub objections: Vec<Warning>,
    /// The devices that drivers and guests have to release, once, from the first step to the last.
    pub unplug: BTreeSet<Sbdf>,
    /// The steps in order. Empty if all goals are reached already.
    pub steps: Vec<Step>,
    /// The functions whose groups change.
    pub groups: Vec<GroupChange>,
    /// The routes from and to the named functions.
    pub routes: Vec<RouteChange>,
    /// The ports whose ACS control differs in the end. The kernel resets ACS control when a port wakes from sleep, is
    /// reset, or (from 7.2 on) is bound to a driver. The caller that carries out the plan keeps the ports awake and
    /// checks them regularly.
    pub ports: Vec<PortChange>,
    /// Changes that last only for a rescan.
    pub transients: Vec<Transient>,
    /// The functions that become reachable without the IOMMU.
    pub exposures: Vec<Exposure>,
    /// Isolation holes between functions of different groups that exist in the end. Most of them exist before, too.
    pub leaks: Vec<IsolationHole>,
    /// Virtual functions that are lost. A rescan does not find them; their physical functions have to create them
    /// again.
    pub lost: BTreeSet<Sbdf>,
    /// The kernel argument that has the most similar effect at boot; `None` if none is needed.
    pub boot: Option<BootArgument>,
}

/// A plan, and the host after it.
#[derive(Debug, Clone)]
pub struct Preview<'t> {
    /// The plan.
    pub plan: Plan,
    /// The groups and ACS registers after the plan.
    pub after: GroupModel<'t>,
}

impl Plan {
    /// Computes a plan.
    ///
    /// A plan with [`objections`](Self::objections) is complete but must not be carried out. An error means that no
    /// plan is possible and has all reasons.
    pub fn make(
        topology: &Topology,
        kernel: &Kernel,
        goals: &Goals,
        options: &PlanOptions,
    ) -> Result<Self, Refusal> {
        Self::preview(topology, kernel, goals, options).map(|preview| preview.plan)
    }

    /// Like [`make`](Self::make), with the predicted state of the host after the plan.
    pub fn preview<'t>(
        topology: &'t Topology,
        kernel: &Kernel,
        goals: &Goals,
        options: &PlanOptions,
    ) -> Result<Preview<'t>, Refusal> {
        let mut planner = Planner::new(topology, kernel, goals, options)?;
        planner.close_routes();
        planner.join()?;
        planner.isolate()?;
        planner.set_acs()?;
        planner.open_routes();
        planner.finish()
    }

    /// The functions that are removed by any step, with those below them.
    #[must_use]
    pub fn removed(&self, topology: &Topology) -> BTreeSet<Sbdf> {
        let removed = self.steps.iter().flat_map(Step::removed);
        removed
            .flat_map(|function| topology.with_descendants(*function))
            .collect()
    }

    /// The ports whose ACS registers are written by any step.
    #[must_use]
    pub fn written(&self) -> BTreeSet<Sbdf> {
        self.steps.iter().filter_map(Step::written).collect()
    }

    /// Whether the plan may be carried out.
    #[must_use]
    pub fn is_acceptable(&self) -> bool {
        self.objections.is_empty()
    }
}
