//! Plans to change IOMMU groups and routes at run time: computed here, carried out elsewhere.
//!
//! Linux computes a group once, when a function is added. To change groups, functions have to be removed and added
//! again, while a port above them lacks something that Linux asks for. Routes are another matter: they follow the ACS
//! words of the ports at once. A plan therefore goes
//!
//! ```text
//! unplug ─ keep ports awake ─ close routes ─┬─ remove ─ open a port ─ rescan ─ restore it ─ check ─┬─ open routes ─ replug
//!                                           └──────────────── once for every change ───────────────┘
//! ```
//!
//! At no moment of it does a port let requests pass from a device that is alive to one that was not named. What the
//! port above lacks for the moment of a rescan is completion redirect if it can be: requests stay redirected, so there
//! are no completions between peers either.

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
use crate::{Exposure, IsolationHole, Sbdf, Topology};
use planner::Planner;

/// How goals are reached, step by step, and all that changes on the way and in the end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// What was asked for.
    pub goals: Goals,
    /// How it was asked for.
    pub options: PlanOptions,
    /// What has to be accepted before the plan may be carried out. If there is any, it is refused as it stands.
    pub objections: Vec<Warning>,
    /// The devices that drivers and guests have to let go of, once, from the first step to the last.
    pub unplug: BTreeSet<Sbdf>,
    /// The steps, in their order. None if all goals are reached already.
    pub steps: Vec<Step>,
    /// Whose group changes.
    pub groups: Vec<GroupChange>,
    /// The ways of requests from and to the functions that were named.
    pub routes: Vec<RouteChange>,
    /// The ACS words that are different in the end. The kernel forgets them when a port wakes from sleep, is reset, or
    /// (from 7.2 on) is bound to a driver: whoever carries the plan out keeps the ports awake and checks now and then.
    pub ports: Vec<PortChange>,
    /// What is different only for the moment of a rescan.
    pub transients: Vec<Transient>,
    /// The functions that become reachable without the IOMMU.
    pub exposures: Vec<Exposure>,
    /// Ways past the IOMMU between functions of different groups that are there in the end, most of them before too.
    pub leaks: Vec<IsolationHole>,
    /// Virtual functions that are lost: no scan finds them, their physical functions have to make them again.
    pub lost: BTreeSet<Sbdf>,
    /// The kernel argument that comes nearest to this at boot; `None` if none is needed.
    pub boot: Option<BootArgument>,
}

impl Plan {
    /// Computes a plan.
    ///
    /// A plan with [`objections`](Self::objections) is complete but must not be carried out; an error says that there
    /// is no way at all, with all reasons.
    pub fn make(
        topology: &Topology,
        kernel: &Kernel,
        goals: &Goals,
        options: &PlanOptions,
    ) -> Result<Self, Refusal> {
        let mut planner = Planner::new(topology, kernel, goals, options)?;
        planner.close_routes();
        planner.join()?;
        planner.isolate()?;
        planner.set_acs()?;
        planner.open_routes();
        planner.finish()
    }

    /// Whether the plan may be carried out.
    #[must_use]
    pub fn is_acceptable(&self) -> bool {
        self.objections.is_empty()
    }
}
