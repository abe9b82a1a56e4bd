//! Goals and options of a plan.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::distinct::{distinct, each_distinct};
use crate::{AcsBits, Exposure, Sbdf};

/// The goals of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Goals {
    /// Sets of functions. Each set is to be in one group.
    #[serde(default, deserialize_with = "each_distinct")]
    pub join: Vec<BTreeSet<Sbdf>>,
    /// Functions to isolate. Each is to be in a group without other devices, and no device is to reach it without the
    /// IOMMU.
    #[serde(default, deserialize_with = "distinct")]
    pub isolate: BTreeSet<Sbdf>,
    /// Ports and the requested values of their ACS control registers. Groups are changed to match.
    #[serde(default)]
    pub acs: BTreeMap<Sbdf, AcsBits>,
}

impl Goals {
    /// The functions that are named.
    pub(super) fn functions(&self) -> BTreeSet<Sbdf> {
        let joined = self.join.iter().flatten();
        joined.chain(&self.isolate).copied().collect()
    }

    /// Whether all devices that reach a function are joined with it.
    #[must_use]
    pub fn asks_for(&self, exposure: &Exposure) -> bool {
        let mut sets = self.join.iter();
        sets.find(|set| set.contains(&exposure.function))
            .is_some_and(|set| exposure.to.iter().all(|from| set.contains(from)))
    }
}

/// Preferred route of requests between joined functions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "schema", schemars(rename = "RouteWish"))]
pub enum RoutePreference {
    /// The least permissive available: direct if this exposes no other device, otherwise through the IOMMU if the root
    /// complex is known to route, otherwise direct.
    #[default]
    Mildest,
    /// Directly across the switch.
    Direct,
    /// Up through the IOMMU.
    Iommu,
}

/// Options of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct PlanOptions {
    /// Preferred route of requests between joined functions.
    #[serde(default)]
    pub route: RoutePreference,
    /// Functions that may become reachable without the IOMMU from devices that they are not joined with.
    #[serde(default, deserialize_with = "distinct")]
    pub expose: BTreeSet<Sbdf>,
    /// Functions that may be unplugged temporarily, get into a group with named ones, or be lost.
    #[serde(default, deserialize_with = "distinct")]
    pub with: BTreeSet<Sbdf>,
}
