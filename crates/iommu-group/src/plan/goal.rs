//! What is asked of a plan.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::distinct::{distinct, each_distinct};
use crate::{AcsBits, Exposure, Sbdf};

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Goals {
    /// Sets of functions, each to be in one group.
    #[serde(default, deserialize_with = "each_distinct")]
    pub join: Vec<BTreeSet<Sbdf>>,
    /// Functions, each to be in a group without other devices, and reachable from none without the IOMMU.
    #[serde(default, deserialize_with = "distinct")]
    pub isolate: BTreeSet<Sbdf>,
    /// Ports, and what their ACS control registers are to hold, with groups to match.
    #[serde(default)]
    pub acs: BTreeMap<Sbdf, AcsBits>,
}

impl Goals {
    /// The functions that are named.
    pub(super) fn functions(&self) -> BTreeSet<Sbdf> {
        let joined = self.join.iter().flatten();
        joined.chain(&self.isolate).copied().collect()
    }

    /// Whether all who reach a function are joined with it.
    #[must_use]
    pub fn asks_for(&self, exposure: &Exposure) -> bool {
        let mut sets = self.join.iter();
        sets.find(|set| set.contains(&exposure.function))
            .is_some_and(|set| exposure.to.iter().all(|from| set.contains(from)))
    }
}

/// How requests between joined functions shall go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "schema", schemars(rename = "RouteWish"))]
pub enum RoutePreference {
    /// By the mildest means that there is: straight if that exposes nobody, else through the IOMMU if the root complex
    /// is known to route, else straight.
    #[default]
    Mildest,
    /// Straight across the switch.
    Direct,
    /// Up through the IOMMU.
    Iommu,
}

/// How it is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct PlanOptions {
    /// How requests between joined functions shall go.
    #[serde(default)]
    pub route: RoutePreference,
    /// Functions that may become reachable without the IOMMU for devices that they are not joined with.
    #[serde(default, deserialize_with = "distinct")]
    pub expose: BTreeSet<Sbdf>,
    /// Functions that may be unplugged for a while, get into a group with named ones, or be lost.
    #[serde(default, deserialize_with = "distinct")]
    pub with: BTreeSet<Sbdf>,
}
