//! State of a function in the computation of groups.

use crate::config::{Acs, AcsBits, PortType, Unreadable};
use crate::kernel::{AcsSubject, Kernel};
use crate::quirks::acs::{self, AcsRule};
use crate::quirks::alias::{self, AliasRule, Aliases};
use crate::topology::{FunctionId, forwards_ari, is_later_function};
use crate::{Function, Ids, Sbdf, Topology};

use super::reason::Reason;

/// How a bridge changes the requester IDs of requests that pass through it (linux 7.2 drivers/pci/search.c:
/// `pci_for_each_dma_alias()`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Passes {
    /// It does not change them: a PCI Express port, or a function that is not a bridge.
    Unchanged,
    /// It replaces them by one requester ID that all functions behind it share.
    OneIdForAll,
    /// The IOMMU is at this bridge; bridges above have no effect.
    ToIommu,
}

/// A group during the computation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct LocalGroup(pub(super) u32);

/// State of a function in the computation of groups. The fields before the blank line are constant.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) sbdf: Sbdf,
    pub(super) on_root_bus: bool,
    /// Index of the kernel's bus object. Linux compares only functions of the same bus.
    pub(super) bus: u32,
    pub(super) devfn: u8,
    pub(super) ids: Ids,
    pub(super) port_type: PortType,
    pub(super) is_virtual: bool,
    pub(super) multifunction_bit: bool,
    pub(super) later_function: bool,
    pub(super) passes: Passes,
    pub(super) aliases: Option<Box<Aliases>>,
    pub(super) aliases_unknown: bool,
    pub(super) rule: Option<AcsRule>,
    /// The implemented bits of the ACS capability.
    pub(super) capability: Option<AcsBits>,
    pub(super) acs_hidden: Option<Unreadable>,
    pub(super) hidden: Option<Unreadable>,
    /// Whether an IOMMU translates for the function.
    pub(super) covered: bool,

    pub(super) present: bool,
    /// Position in the kernel's list of devices, in order of addition.
    pub(super) added: u32,
    pub(super) multifunction: bool,
    pub(super) control: AcsBits,
    pub(super) intel_pch_enabled: bool,
    pub(super) group: Option<LocalGroup>,
    pub(super) reason: Reason,
}

impl Node {
    pub(super) fn new(
        topology: &Topology,
        kernel: &Kernel,
        id: FunctionId,
        function: &Function,
        bus: u32,
    ) -> Self {
        let tree = topology.tree();
        let parent = tree.parent(id);
        let above = parent.and_then(|parent| topology.function(parent));
        let ids = function.ids();
        let (capability, control, acs_hidden) = match function.acs() {
            Acs::Absent => (None, AcsBits::NONE, None),
            Acs::Unknown(hidden) => (None, AcsBits::NONE, Some(*hidden)),
            Acs::Known(acs) => (
                Some(kernel.implemented(ids, acs.capability)),
                acs.control,
                None,
            ),
        };
        let alias = alias::aliases(ids, function.class(), function.sbdf(), kernel.rules);
        let port_type = function.port_type();
        Self {
            sbdf: function.sbdf(),
            on_root_bus: parent.is_none() && !function.on_virtual_bus(),
            bus,
            devfn: function.sbdf().devfn(),
            ids,
            port_type,
            is_virtual: function.is_virtual(),
            multifunction_bit: function.multifunction_bit(),
            later_function: is_later_function(function, above.is_some_and(forwards_ari)),
            passes: passes(function, kernel),
            aliases: match alias {
                Some(AliasRule::Known(aliases)) => Some(Box::new(aliases)),
                _ => None,
            },
            aliases_unknown: alias == Some(AliasRule::InDeviceMemory),
            rule: acs::rule(ids, port_type),
            capability,
            acs_hidden,
            hidden: function.config().hidden,
            covered: true,
            present: true,
            added: 0,
            multifunction: function.is_multifunction(),
            control,
            intel_pch_enabled: false,
            group: None,
            reason: Reason::NoIommu,
        }
    }

    /// The properties that the kernel reads when it sets up ACS.
    pub(super) fn acs_subject(&self, id: FunctionId) -> AcsSubject {
        AcsSubject {
            id,
            ids: self.ids,
            port_type: self.port_type,
            capability: self.capability,
            control: self.control,
        }
    }
}

fn passes(bridge: &Function, kernel: &Kernel) -> Passes {
    if !bridge.is_bridge() {
        return Passes::Unchanged;
    }
    let ids = bridge.ids();
    if alias::is_translation_root(ids) {
        return Passes::ToIommu;
    }
    match bridge.port_type() {
        PortType::PcieToPciBridge if alias::passes_requester_ids(ids, kernel.rules) => {
            Passes::Unchanged
        }
        // The requester ID is that of the bridge or of function 0 behind it, depending on the kind of bridge and on
        // quirks. Groups are the same in both cases.
        PortType::PcieToPciBridge | PortType::PciToPcieBridge | PortType::Conventional => {
            Passes::OneIdForAll
        }
        _ => Passes::Unchanged,
    }
}
