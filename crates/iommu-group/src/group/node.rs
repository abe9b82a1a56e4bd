//! A function as the computation of groups sees it.

use crate::config::{Acs, AcsBits, PortType, Unreadable};
use crate::kernel::{AcsSubject, Kernel};
use crate::quirks::acs::{self, AcsRule};
use crate::quirks::alias::{self, AliasRule, Aliases};
use crate::topology::{FunctionId, forwards_ari, is_later_function};
use crate::{Function, Ids, Sbdf, Topology};

use super::reason::Reason;

/// What requests through a bridge look like above it (linux 7.2 drivers/pci/search.c: `pci_for_each_dma_alias()`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Passes {
    /// As below: a PCI Express port, or anything that is no bridge.
    Unchanged,
    /// With a requester id that all functions behind it share.
    OneIdForAll,
    /// The IOMMU is here: nothing above matters.
    ToIommu,
}

/// A group while it is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct LocalGroup(pub(super) u32);

/// A function as the computation of groups sees it. The first part never changes.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) sbdf: Sbdf,
    pub(super) on_root_bus: bool,
    /// Which bus, in the sense of the kernel's objects: functions of different buses never look at each other.
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
    /// The implemented bits of an ACS capability.
    pub(super) capability: Option<AcsBits>,
    pub(super) acs_hidden: Option<Unreadable>,
    pub(super) hidden: Option<Unreadable>,
    /// Whether an IOMMU serves it at all.
    pub(super) covered: bool,

    pub(super) present: bool,
    /// When it was added: the order of the kernel's list of devices.
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

    /// What the kernel looks at when it sets up ACS.
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
        // The id is the bridge's own or that of function 0 behind it, depending on the kind of bridge and on quirks.
        // Groups do not depend on which.
        PortType::PcieToPciBridge | PortType::PciToPcieBridge | PortType::Conventional => {
            Passes::OneIdForAll
        }
        _ => Passes::Unchanged,
    }
}
