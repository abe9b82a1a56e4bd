//! The state of a host before a transaction, as far as the transaction affects it.

use std::collections::{BTreeMap, BTreeSet};

use iommu_group::{AcsBits, EgressVector, Function, Groups, Sbdf, Topology};
use serde::{Deserialize, Serialize};

use super::host::HostError;
use super::identity::Identity;
use super::preview::Preview;
use super::sysfs_ops::{KEPT, SysfsOps};
use super::topology_path::TopologyPath;
use super::vmm::VmDevice;

/// Offset of the egress control vector from the header of the ACS capability, in bytes (PCIe r6.0 §7.7.11.4).
pub(super) const EGRESS_VECTOR: u16 = 8;

/// The state of a host before a transaction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Snapshot {
    /// All functions below the affected root ports, except virtual functions.
    pub functions: BTreeMap<Sbdf, FunctionState>,
    /// The groups of these functions.
    pub groups: Vec<Vec<Sbdf>>,
    /// Whether the kernel bound drivers to functions that it found.
    pub autoprobe: bool,
    /// The devices that are unplugged from virtual machines.
    pub assigned: Vec<VmDevice>,
    /// Functions that were reachable without the IOMMU because of these devices. Undo may give the devices back with
    /// the same exposures.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub exposed: BTreeSet<Sbdf>,
}

/// The state of a function before a transaction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FunctionState {
    /// Path to the function.
    #[serde(rename = "place")]
    pub topology_path: TopologyPath,
    /// IDs of the device.
    pub identity: Identity,
    /// Whether it is a bridge.
    #[serde(default)]
    pub bridge: bool,
    /// How the transaction affects the function.
    #[serde(rename = "part")]
    pub involvement: Involvement,
    /// The bound driver.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// Its `driver_override`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub driver_override: String,
    /// Attributes that are lost when the function is removed.
    pub attributes: BTreeMap<String, String>,
    /// Value of `power/control` before an earlier transaction set it to `on`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rest: Option<String>,
    /// ACS registers, if the function is a port that has them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acs: Option<AcsState>,
}

impl FunctionState {
    /// The current address of the function. A different device in its place is not found.
    pub(super) fn find(&self, now: &Topology) -> Option<Sbdf> {
        let at = self.topology_path.find(now)?;
        (Identity::of(now.get(at)?) == self.identity).then_some(at)
    }
}

/// How a transaction affects a function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Involvement {
    /// The function is removed and found again.
    #[serde(default)]
    pub removed: bool,
    /// The function is unbound from its driver.
    #[serde(default)]
    pub unbound: bool,
    /// The function is kept awake, and its registers may be written.
    #[serde(default)]
    pub awake: bool,
    /// The function stays awake after the transaction.
    #[serde(default)]
    pub held: bool,
}

impl Involvement {
    pub(super) fn touched(self) -> bool {
        self.removed || self.unbound || self.awake
    }
}

/// The ACS registers of a port before a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AcsState {
    /// Offset of the control register in configuration space.
    pub at: u16,
    /// Value of the control register.
    pub control: AcsBits,
    /// Offset of the egress control vector.
    pub vector_at: u16,
    /// Value of the egress control vector, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<EgressVector>,
}

impl AcsState {
    /// The registers of a port; `None` if it has none, or the function is not a port.
    pub(super) fn of(function: &Function) -> Option<Self> {
        let acs = function.acs().registers()?;
        function.port_type().is_downstream().then(|| Self {
            at: acs.control_offset(),
            control: acs.control,
            vector_at: acs.offset.saturating_add(EGRESS_VECTOR),
            egress: acs.egress,
        })
    }
}

impl Snapshot {
    /// Records the state of a host before a plan is carried out. `rest` holds the original `power/control` of ports
    /// that an earlier transaction keeps awake.
    pub(super) fn take(
        ops: SysfsOps<'_>,
        preview: &Preview<'_>,
        rest: &BTreeMap<Sbdf, String>,
        assigned: Vec<VmDevice>,
    ) -> Result<Self, HostError> {
        let topology = preview.topology;
        let (awake, held) = (preview.awake(), preview.held(rest));
        let affected = preview.touched().into_iter().chain(awake.iter().copied());
        let mut functions = BTreeMap::new();
        for sbdf in topology.hierarchies(affected) {
            let Some(topology_path) = TopologyPath::of(topology, sbdf) else {
                continue;
            };
            let Some(function) = topology.get(sbdf) else {
                continue;
            };
            let involvement = Involvement {
                removed: preview.removed.contains(&sbdf),
                unbound: preview.plan.unplug.contains(&sbdf),
                awake: awake.contains(&sbdf),
                held: held.contains(&sbdf),
            };
            let mut attributes = BTreeMap::new();
            for name in KEPT.into_iter().filter(|_| involvement.touched()) {
                if let Some(value) = ops.attribute(sbdf, name)? {
                    attributes.insert(name.to_owned(), value);
                }
            }
            let was = FunctionState {
                topology_path,
                identity: Identity::of(function),
                bridge: function.is_bridge(),
                involvement,
                driver: function.driver().map(str::to_owned),
                driver_override: ops.driver_override(sbdf)?,
                attributes,
                rest: rest.get(&sbdf).cloned(),
                acs: AcsState::of(function),
            };
            functions.insert(sbdf, was);
        }
        let mut groups = Groups::found(topology).groups().to_vec();
        groups.retain(|group| group.iter().any(|member| functions.contains_key(member)));
        Ok(Self {
            functions,
            groups,
            autoprobe: ops.autoprobe()?,
            assigned,
            exposed: BTreeSet::new(),
        })
    }

    /// The groups with a device in them. The group of a port without a device in its group does not affect isolation,
    /// and a rescan may not restore it.
    pub(super) fn groups_with_devices(&self) -> impl Iterator<Item = &Vec<Sbdf>> {
        self.groups.iter().filter(|group| {
            let mut members = group.iter().map(|member| self.functions.get(member));
            members.any(|was| was.is_none_or(|was| !was.bridge))
        })
    }

    /// The functions that are affected as `part` selects, each bridge before the functions below it.
    pub(super) fn with(
        &self,
        involvement: impl Fn(Involvement) -> bool,
    ) -> Vec<(Sbdf, &FunctionState)> {
        let mut found: Vec<(Sbdf, &FunctionState)> = self
            .functions
            .iter()
            .filter(|(_, was)| involvement(was.involvement))
            .map(|(sbdf, was)| (*sbdf, was))
            .collect();
        found.sort_by_key(|(sbdf, was)| (was.topology_path.below().len(), *sbdf));
        found
    }

    /// Current address of each function, by its recorded address.
    pub(super) fn renamed(&self, now: &Topology) -> BTreeMap<Sbdf, Sbdf> {
        self.functions
            .iter()
            .filter_map(|(then, was)| Some((was.find(now)?, *then)))
            .collect()
    }
}
