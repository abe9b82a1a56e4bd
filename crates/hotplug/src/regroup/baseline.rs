//! What a host was like before a transaction, as far as the transaction touches it.

use std::collections::{BTreeMap, BTreeSet};

use iommu_group::{
    AcsBits, EgressVector, Function, GroupModel, Groups, Kernel, Plan, Sbdf, Step, Topology,
};
use serde::{Deserialize, Serialize};

use super::host::HostError;
use super::identity::Identity;
use super::machine::{KEPT, Machine};
use super::place::Place;
use super::vmm::Assigned;

/// Bytes from the start of the ACS capability to the egress control vector (PCIe r6.0 §7.7.11.4).
pub(super) const EGRESS_VECTOR: u16 = 8;

/// What a host was like.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Baseline {
    /// All functions below the root ports concerned, virtual ones excepted.
    pub functions: BTreeMap<Sbdf, Was>,
    /// The groups of all of those.
    pub groups: Vec<Vec<Sbdf>>,
    /// Whether the kernel gave what it found to drivers.
    pub autoprobe: bool,
    /// The devices that virtual machines had and that are unplugged.
    pub assigned: Vec<Assigned>,
    /// Functions that were reachable without the IOMMU because of those devices: no reason not to give them back.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub exposed: BTreeSet<Sbdf>,
}

/// What a function was like.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Was {
    /// Where it is.
    pub place: Place,
    /// Which device it is.
    pub identity: Identity,
    /// Whether there is a bus below it.
    #[serde(default)]
    pub bridge: bool,
    /// What the transaction does to it.
    pub part: Part,
    /// The driver that was bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// Its `driver_override`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub driver_override: String,
    /// Attributes that a removal forgets.
    pub attributes: BTreeMap<String, String>,
    /// What its `power/control` was before an earlier transaction kept it awake.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rest: Option<String>,
    /// Its ACS, if it is a port that has any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acs: Option<AcsWas>,
}

impl Was {
    /// The function now, whatever its address. Another device in its place is not it.
    pub(super) fn find(&self, now: &Topology) -> Option<Sbdf> {
        let at = self.place.find(now)?;
        (Identity::of(now.get(at)?) == self.identity).then_some(at)
    }
}

/// What a transaction does to a function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// It is removed and found again.
    #[serde(default)]
    pub removed: bool,
    /// It is taken from its driver.
    #[serde(default)]
    pub unbound: bool,
    /// It is kept awake, and its registers may be written.
    #[serde(default)]
    pub awake: bool,
    /// It stays awake when the transaction is over.
    #[serde(default)]
    pub held: bool,
}

impl Part {
    pub(super) fn touched(self) -> bool {
        self.removed || self.unbound || self.awake
    }
}

/// What the ACS of a port was like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AcsWas {
    /// Where the control register is in configuration space.
    pub at: u16,
    /// What it held.
    pub control: AcsBits,
    /// Where the egress control vector is.
    pub vector_at: u16,
    /// What that held, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<EgressVector>,
}

impl Baseline {
    /// Looks at a host before a plan is carried out. `rest` is what `power/control` of the ports was that an earlier
    /// transaction keeps awake.
    pub(super) fn take(
        machine: Machine<'_>,
        topology: &Topology,
        plan: &Plan,
        rest: &BTreeMap<Sbdf, String>,
        assigned: Vec<Assigned>,
    ) -> Result<Self, HostError> {
        let parts = Parts::of(plan, topology, rest);
        let mut functions = BTreeMap::new();
        for function in concerned(topology, &parts) {
            let sbdf = function.sbdf();
            let Some(place) = Place::of(topology, sbdf) else {
                continue;
            };
            let part = parts.part(sbdf);
            let mut attributes = BTreeMap::new();
            for name in KEPT.into_iter().filter(|_| part.touched()) {
                if let Some(value) = machine.attribute(sbdf, name)? {
                    attributes.insert(name.to_owned(), value);
                }
            }
            let port = function.port_type().is_downstream();
            let acs = function.acs().registers().filter(|_| port);
            let was = Was {
                place,
                identity: Identity::of(function),
                bridge: function.is_bridge(),
                part,
                driver: function.driver().map(str::to_owned),
                driver_override: machine.driver_override(sbdf)?,
                attributes,
                rest: rest.get(&sbdf).cloned(),
                acs: acs.map(|acs| AcsWas {
                    at: acs.control_offset(),
                    control: acs.control,
                    vector_at: acs.offset.saturating_add(EGRESS_VECTOR),
                    egress: acs.egress,
                }),
            };
            functions.insert(sbdf, was);
        }
        let mut groups = Groups::found(topology).groups().to_vec();
        groups.retain(|group| group.iter().any(|member| functions.contains_key(member)));
        Ok(Self {
            functions,
            groups,
            autoprobe: machine.autoprobe()?,
            assigned,
            exposed: BTreeSet::new(),
        })
    }

    /// The groups with a device in them. What group a port is in that has no device in its group says nothing about
    /// who reaches whom, and a scan need not make it again.
    pub(super) fn groups_with_devices(&self) -> impl Iterator<Item = &Vec<Sbdf>> {
        self.groups.iter().filter(|group| {
            let mut members = group.iter().map(|member| self.functions.get(member));
            members.any(|was| was.is_none_or(|was| !was.bridge))
        })
    }

    /// The functions that play a part, each bridge before what is below it.
    pub(super) fn with(&self, part: impl Fn(Part) -> bool) -> Vec<(Sbdf, &Was)> {
        let mut found: Vec<(Sbdf, &Was)> = self
            .functions
            .iter()
            .filter(|(_, was)| part(was.part))
            .map(|(sbdf, was)| (*sbdf, was))
            .collect();
        found.sort_by_key(|(sbdf, was)| (was.place.below().len(), *sbdf));
        found
    }

    /// What functions are called now and were called then.
    pub(super) fn renamed(&self, now: &Topology) -> BTreeMap<Sbdf, Sbdf> {
        self.functions
            .iter()
            .filter_map(|(then, was)| Some((was.find(now)?, *then)))
            .collect()
    }
}

/// Which functions a plan does what to.
#[derive(Default)]
struct Parts {
    removed: BTreeSet<Sbdf>,
    unbound: BTreeSet<Sbdf>,
    awake: BTreeSet<Sbdf>,
    held: BTreeSet<Sbdf>,
}

impl Parts {
    fn of(plan: &Plan, topology: &Topology, rest: &BTreeMap<Sbdf, String>) -> Self {
        let mut parts = Self {
            unbound: plan.unplug.clone(),
            held: held(plan, topology, rest),
            ..Self::default()
        };
        for step in &plan.steps {
            match step {
                Step::KeepAwake { ports } => parts.awake.extend(ports),
                Step::Remove { functions } => {
                    for function in functions {
                        parts.removed.insert(*function);
                        let below = topology.descendants(*function);
                        parts.removed.extend(below.map(Function::sbdf));
                    }
                }
                Step::Unplug { .. }
                | Step::SetAcs { .. }
                | Step::SetEgress { .. }
                | Step::Rescan { .. }
                | Step::CheckGroups { .. }
                | Step::Replug { .. } => {}
            }
        }
        parts
    }

    fn part(&self, function: Sbdf) -> Part {
        Part {
            removed: self.removed.contains(&function),
            unbound: self.unbound.contains(&function),
            awake: self.awake.contains(&function),
            held: self.held.contains(&function),
        }
    }
}

/// The ports that have to stay awake when a plan has been carried out: those with a word that the plan or an earlier
/// one has written and that the kernel would undo, and those above them.
fn held(plan: &Plan, topology: &Topology, rest: &BTreeMap<Sbdf, String>) -> BTreeSet<Sbdf> {
    let mut model = GroupModel::as_found(topology, &Kernel::of(topology));
    plan.steps.iter().for_each(|step| step.apply(&mut model));
    let written = plan.ports.iter().map(|change| change.port);
    written
        .chain(rest.keys().copied())
        .filter(|port| model.acs_control(*port) != model.acs_control_if_set_up(*port))
        .flat_map(|port| {
            let above = topology.ancestors(port).map(Function::sbdf);
            std::iter::once(port).chain(above)
        })
        .collect()
}

/// All functions below the root ports of those that play a part, the root ports included.
fn concerned<'t>(topology: &'t Topology, parts: &Parts) -> Vec<&'t Function> {
    let all = parts
        .removed
        .iter()
        .chain(&parts.unbound)
        .chain(&parts.awake);
    let roots: BTreeSet<Sbdf> = all
        .map(|function| {
            let top = topology.ancestors(*function).last();
            top.map_or(*function, Function::sbdf)
        })
        .collect();
    roots
        .into_iter()
        .flat_map(|root| {
            topology
                .get(root)
                .into_iter()
                .chain(topology.descendants(root))
        })
        .collect()
}
