//! Whether Linux regards a function as isolating.

use super::node::Node;
use super::reason::AcsDeficiency;
use crate::config::{AcsBits, PortType, Unreadable};
use crate::kernel::Kernel;
use crate::quirks::acs::AcsRule;

/// The reason why Linux does not regard a function as isolating, if any. An isolating function has all bits of
/// [`AcsBits::REQUIRED`] that it implements (linux 7.2 drivers/pci/pci.c: `pci_acs_enabled()`).
pub(super) fn lack(node: &Node, kernel: &Kernel) -> Option<AcsDeficiency> {
    match node.rule {
        Some(AcsRule::Isolated(_)) => return None,
        Some(AcsRule::NotIsolated(why)) => return Some(AcsDeficiency::Quirk(why)),
        Some(AcsRule::AmdSouthbridge)
            if node.multifunction && node.on_root_bus && kernel.has_ivrs =>
        {
            return None;
        }
        Some(AcsRule::IntelPch) if node.intel_pch_enabled => return None,
        Some(AcsRule::IntelPch) => {
            return Some(AcsDeficiency::Quirk(
                "a root port without ACS that the kernel has not set up in its own way",
            ));
        }
        Some(AcsRule::AmdSouthbridge) | None => {}
    }
    if overridden(node, kernel) {
        return None;
    }
    match node.port_type {
        PortType::Unknown => Some(AcsDeficiency::Unreadable(
            node.hidden.unwrap_or(Unreadable::Unreachable),
        )),
        PortType::Conventional => Some(AcsDeficiency::Conventional),
        PortType::PcieToPciBridge | PortType::PciToPcieBridge => Some(AcsDeficiency::Bridge),
        PortType::RcEventCollector => Some(AcsDeficiency::EventCollector),
        PortType::RootPort | PortType::SwitchDownstream => registers(node),
        PortType::Endpoint
        | PortType::LegacyEndpoint
        | PortType::SwitchUpstream
        | PortType::RcEndpoint => {
            if node.multifunction {
                registers(node)
            } else {
                None
            }
        }
        PortType::Reserved(_) => None,
    }
}

/// The required bits that are clear in the registers. A bit that is not implemented counts as set: the specification
/// requires it only where it has an effect (linux 7.2 drivers/pci/pci.c: `pci_acs_flags_enabled()`).
fn registers(node: &Node) -> Option<AcsDeficiency> {
    if let Some(hidden) = node.acs_hidden {
        return Some(AcsDeficiency::Unreadable(hidden));
    }
    let Some(capability) = node.capability else {
        return Some(AcsDeficiency::NoAcs);
    };
    let off = AcsBits::REQUIRED & capability & !node.control;
    (!off.is_empty()).then_some(AcsDeficiency::Off(off))
}

/// Whether `pcie_acs_override=` of a patched kernel declares the function isolated. The patch appends an entry to the
/// table of quirks, for PCI Express functions without an ACS capability.
fn overridden(node: &Node, kernel: &Kernel) -> bool {
    let Some(wanted) = &kernel.parameters.acs_override else {
        return false;
    };
    if !node.port_type.is_express() || node.capability.is_some() || node.acs_hidden.is_some() {
        return false;
    }
    if wanted.names(node.ids) {
        return true;
    }
    match node.port_type {
        PortType::RootPort | PortType::SwitchDownstream => wanted.downstream,
        PortType::Endpoint
        | PortType::LegacyEndpoint
        | PortType::SwitchUpstream
        | PortType::RcEndpoint => wanted.multifunction && node.multifunction,
        _ => false,
    }
}
