//! Model of the kernel's IOMMU groups that supports changes and queries.

use std::collections::{BTreeMap, BTreeSet};

use super::bus_index::BusIndex;
use super::find::GroupFinder;
use super::groups::Groups;
use super::node::{LocalGroup, Node};
use super::reason::{Reason, Uncertainty};
use crate::config::{AcsBits, EgressVector};
use crate::kernel::Kernel;
use crate::topology::FunctionId;
use crate::{Sbdf, Topology};

/// Assumed content of the ACS control registers when a machine starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Firmware {
    /// Zero, as after a reset: the firmware does not set up ACS.
    #[default]
    Cleared,
    /// The current content.
    AsFound,
}

/// A model of the kernel's IOMMU groups and of the ACS registers. It computes groups when functions are added, and
/// keeps the groups of the other functions when functions are removed. It does not change the machine.
///
/// ```
/// # use iommu_group::{Firmware, GroupModel, Kernel, Topology};
/// # fn show(topology: &Topology) {
/// let kernel = Kernel::of(topology);
/// for group in GroupModel::booted(topology, &kernel, Firmware::Cleared).groups().groups() {
///     println!("{group:?}");
/// }
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct GroupModel<'t> {
    topology: &'t Topology,
    kernel: Kernel,
    nodes: Vec<Node>,
    buses: BusIndex,
    /// The functions that a scan finds, in scan order.
    scan_order: Vec<FunctionId>,
    next_group: u32,
    clock: u32,
    doubts: BTreeMap<Sbdf, Uncertainty>,
    /// Egress control vectors that were written to the model.
    egress: BTreeMap<Sbdf, EgressVector>,
}

impl<'t> GroupModel<'t> {
    /// The current groups and registers. If no function has a group because no IOMMU is in use, the model has no groups
    /// either.
    #[must_use]
    pub fn as_found(topology: &'t Topology, kernel: &Kernel) -> Self {
        let mut model = Self::new(topology, kernel);
        for (node, function) in model.nodes.iter_mut().zip(topology.functions()) {
            node.group = function.group().map(|group| LocalGroup(group.0));
            node.reason = if node.group.is_some() {
                Reason::Kept
            } else {
                Reason::NoIommu
            };
            node.intel_pch_enabled = kernel.requests_acs;
        }
        model.next_group = topology
            .functions()
            .iter()
            .filter_map(|function| function.group())
            .map(|group| group.0.saturating_add(1))
            .max()
            .unwrap_or(0);
        let order = model.scan_order.clone();
        for id in order {
            model.tick(id);
        }
        for index in 0..model.nodes.len() {
            if model.nodes.get(index).is_some_and(|node| node.is_virtual) {
                model.tick(FunctionId::new(index));
            }
        }
        for id in added_later(topology) {
            model.tick(id);
        }
        model
    }

    /// The groups and registers after a boot. The kernel finds all functions, sets up ACS, and computes the groups in
    /// the order of the functions; virtual functions are added last.
    #[must_use]
    pub fn booted(topology: &'t Topology, kernel: &Kernel, firmware: Firmware) -> Self {
        let mut model = Self::new(topology, kernel);
        if !topology.has_groups() {
            for node in &mut model.nodes {
                node.covered = true;
            }
        }
        for node in &mut model.nodes {
            node.present = false;
            node.reason = Reason::Gone;
            if firmware == Firmware::Cleared {
                node.control = AcsBits::NONE;
            }
        }
        let order = model.scan_order.clone();
        for id in &order {
            model.tick(*id);
            model.set_up_acs(*id);
            if let Some(node) = model.nodes.get_mut(id.index()) {
                node.present = true;
                node.multifunction = node.multifunction_bit || node.later_function;
            }
        }
        for id in order {
            model.join(id);
        }
        for index in 0..model.nodes.len() {
            if model.nodes.get(index).is_some_and(|node| node.is_virtual) {
                model.add(FunctionId::new(index));
            }
        }
        model
    }

    fn new(topology: &'t Topology, kernel: &Kernel) -> Self {
        let buses = BusIndex::number(topology);
        let covers_all = !topology.has_groups();
        let nodes: Vec<Node> = topology
            .functions()
            .iter()
            .zip(&buses.of)
            .enumerate()
            .map(|(index, (function, bus))| {
                let mut node = Node::new(topology, kernel, FunctionId::new(index), function, *bus);
                node.covered = covers_all || function.group().is_some();
                node
            })
            .collect();
        let mut model = Self {
            topology,
            kernel: kernel.clone(),
            buses,
            scan_order: scan_order(topology),
            nodes,
            next_group: 0,
            clock: 0,
            doubts: BTreeMap::new(),
            egress: BTreeMap::new(),
        };
        model.buses.note_aliases(&model.nodes);
        model
    }

    /// The topology of this model.
    #[must_use]
    pub fn topology(&self) -> &'t Topology {
        self.topology
    }

    pub(crate) fn kernel(&self) -> &Kernel {
        &self.kernel
    }

    /// The egress control vectors that were written to the model.
    pub(crate) fn written_egress(&self) -> &BTreeMap<Sbdf, EgressVector> {
        &self.egress
    }

    /// For each function, whether it is present, and the content of its ACS control register.
    pub(crate) fn presence_and_control(&self) -> impl Iterator<Item = (bool, AcsBits)> {
        self.nodes.iter().map(|node| (node.present, node.control))
    }

    /// Whether a function is present.
    #[must_use]
    pub fn is_present(&self, sbdf: Sbdf) -> bool {
        self.node(sbdf).is_some_and(|node| node.present)
    }

    /// The content of a function's ACS control register. `None` if it has none or is not present.
    #[must_use]
    pub fn acs_control(&self, sbdf: Sbdf) -> Option<AcsBits> {
        let node = self.node(sbdf)?;
        (node.present && node.capability.is_some()).then_some(node.control)
    }

    /// The value that the kernel writes to a function's ACS control register when it sets up ACS again, as it does when
    /// a port wakes or is reset.
    #[must_use]
    pub fn acs_control_if_set_up(&self, sbdf: Sbdf) -> Option<AcsBits> {
        self.acs_control(sbdf)?;
        let subject = self.node(sbdf)?.acs_subject(self.topology.id(sbdf)?);
        Some(self.kernel.set_up_acs(self.topology, &subject).control)
    }

    /// Writes the ACS control register of a function. This changes no group.
    pub fn set_acs_control(&mut self, sbdf: Sbdf, control: AcsBits) {
        let id = self.topology.id(sbdf);
        let node = id.and_then(|id| self.nodes.get_mut(id.index()));
        if let Some(node) = node.filter(|node| node.present && node.capability.is_some()) {
            node.control = control;
        }
    }

    /// Writes the egress control vector of a function, if it has one.
    pub fn set_egress(&mut self, sbdf: Sbdf, vector: EgressVector) {
        if self.is_present(sbdf) && self.egress(sbdf).is_some() {
            self.egress.insert(sbdf, vector);
        }
    }

    /// The egress control vector of a function. `None` if it has none.
    #[must_use]
    pub fn egress(&self, sbdf: Sbdf) -> Option<EgressVector> {
        let written = self.egress.get(&sbdf).copied();
        written.or_else(|| self.topology.get(sbdf)?.acs().registers()?.egress)
    }

    /// Removes a function and all functions below it. If it is a physical function, its virtual functions are removed
    /// permanently.
    pub fn remove(&mut self, sbdf: Sbdf) {
        let Some(id) = self.topology.id(sbdf) else {
            return;
        };
        let mut pending = vec![id];
        while let Some(id) = pending.pop() {
            pending.extend_from_slice(self.topology.tree().children(id));
            let Some(node) = self.nodes.get_mut(id.index()) else {
                continue;
            };
            node.present = false;
            node.group = None;
            node.reason = Reason::Gone;
            let physical = node.sbdf;
            let is_physical = self
                .topology
                .function(id)
                .is_some_and(|f| f.config().sriov.is_some());
            if is_physical {
                let virtuals = self.topology.virtual_functions(physical);
                pending.extend(
                    virtuals
                        .filter_map(|f| self.topology.id(f.sbdf()))
                        .filter(|v| self.nodes.get(v.index()).is_some_and(|node| node.present)),
                );
            }
        }
    }

    /// Scans for removed functions and adds them again: the kernel sets up their ACS and computes their groups. A scan
    /// does not find virtual functions.
    pub fn rescan(&mut self) {
        for index in 0..self.scan_order.len() {
            let Some(id) = self.scan_order.get(index).copied() else {
                break;
            };
            let absent = self.nodes.get(id.index()).is_some_and(|node| !node.present);
            if absent {
                self.add(id);
            }
        }
    }

    /// The model after a removal of functions and a scan.
    #[must_use]
    pub(crate) fn readded(mut self, functions: &BTreeSet<Sbdf>) -> Self {
        functions.iter().for_each(|function| self.remove(*function));
        self.rescan();
        self
    }

    /// The reason for the group that a function would get if only this function were removed and added again now.
    #[must_use]
    pub fn reason_if_readded(&self, sbdf: Sbdf) -> Option<Reason> {
        let id = self.topology.id(sbdf)?;
        let mut copy = self.clone();
        let node = copy.nodes.get_mut(id.index())?;
        node.present = false;
        node.group = None;
        copy.add(id);
        copy.nodes.get(id.index()).map(|node| node.reason)
    }

    /// The reason for the current group of a function.
    #[must_use]
    pub fn reason(&self, sbdf: Sbdf) -> Option<Reason> {
        self.node(sbdf).map(|node| node.reason)
    }

    /// Whether two functions are in the same group.
    #[must_use]
    pub fn together(&self, a: Sbdf, b: Sbdf) -> bool {
        let group = |sbdf| self.node(sbdf).and_then(|node| node.group);
        group(a).is_some() && group(a) == group(b)
    }

    /// The current groups.
    #[must_use]
    pub fn groups(&self) -> Groups {
        Groups::new(
            self.nodes
                .iter()
                .filter_map(|node| Some((node.sbdf, node.group?))),
        )
    }

    /// The unknown facts that the computed groups depend on.
    pub fn doubts(&self) -> impl Iterator<Item = (Sbdf, Uncertainty)> {
        self.doubts.iter().map(|(sbdf, doubt)| (*sbdf, *doubt))
    }

    fn node(&self, sbdf: Sbdf) -> Option<&Node> {
        self.nodes.get(self.topology.id(sbdf)?.index())
    }

    fn tick(&mut self, id: FunctionId) {
        self.clock = self.clock.saturating_add(1);
        if let Some(node) = self.nodes.get_mut(id.index()) {
            node.added = self.clock;
        }
    }

    /// Adds a function that a scan finds or that its physical function creates.
    fn add(&mut self, id: FunctionId) {
        self.tick(id);
        if let Some(node) = self.nodes.get_mut(id.index()) {
            node.present = true;
            node.multifunction = node.multifunction_bit;
        }
        self.set_up_acs(id);
        self.join(id);
        // The scan sets the multifunction flag of later functions only after it has added them.
        if let Some(node) = self.nodes.get_mut(id.index()) {
            node.multifunction |= node.later_function;
        }
    }

    fn set_up_acs(&mut self, id: FunctionId) {
        let Some(node) = self.nodes.get_mut(id.index()) else {
            return;
        };
        let subject = node.acs_subject(id);
        let setup = self.kernel.set_up_acs(self.topology, &subject);
        node.control = setup.control;
        node.intel_pch_enabled |= setup.intel_pch_enabled;
    }

    fn join(&mut self, id: FunctionId) {
        if !self.nodes.get(id.index()).is_some_and(|node| node.covered) {
            if let Some(node) = self.nodes.get_mut(id.index()) {
                node.reason = Reason::NoIommu;
            }
            return;
        }
        let (found, reason) = GroupFinder {
            topology: self.topology,
            kernel: &self.kernel,
            nodes: &self.nodes,
            buses: &self.buses,
            doubts: &mut self.doubts,
        }
        .find(id);
        let group = found.unwrap_or_else(|| {
            let new = LocalGroup(self.next_group);
            self.next_group = self.next_group.saturating_add(1);
            new
        });
        if let Some(node) = self.nodes.get_mut(id.index()) {
            node.group = Some(group);
            node.reason = reason;
        }
    }
}

/// The functions that a scan finds, in scan order: all functions of a bus, then the functions below each of its bridges
/// (linux 7.2 drivers/pci/probe.c: `pci_scan_child_bus_extend()`).
fn scan_order(topology: &Topology) -> Vec<FunctionId> {
    let tree = topology.tree();
    let scanned = |id: &FunctionId| {
        topology
            .function(*id)
            .is_some_and(|function| !function.is_virtual())
    };
    let mut order = Vec::with_capacity(topology.functions().len());
    let mut buses: Vec<&[FunctionId]> = (0..tree.root_buses().len())
        .rev()
        .map(|root| tree.on_root_number(root))
        .collect();
    while let Some(bus) = buses.pop() {
        order.extend(bus.iter().copied().filter(scanned));
        buses.extend(
            bus.iter()
                .rev()
                .map(|bridge| tree.children(*bridge))
                .filter(|children| !children.is_empty()),
        );
    }
    order
}

/// The functions that the kernel added out of address order. The host's list has no segment: an entry matches the
/// functions with that BDF in all segments.
fn added_later(topology: &Topology) -> Vec<FunctionId> {
    let late = &topology.host().added_later;
    if late.is_empty() {
        return Vec::new();
    }
    let mut by_number: BTreeMap<u16, Vec<FunctionId>> = BTreeMap::new();
    for (index, function) in topology.functions().iter().enumerate() {
        let number = function.sbdf().requester_id();
        let ids = by_number.entry(number).or_default();
        ids.push(FunctionId::new(index));
    }
    let numbers = late.iter().filter_map(|text| text.parse::<Sbdf>().ok());
    numbers
        .filter_map(|sbdf| by_number.get(&sbdf.requester_id()))
        .flatten()
        .copied()
        .collect()
}
