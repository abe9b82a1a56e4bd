//! Values that the kernel writes to ACS control registers.

use super::Kernel;
use super::device_match::{Match, device_match};
use crate::config::{AcsBits, PortType};
use crate::quirks::acs::{self, IntelPort};
use crate::topology::FunctionId;
use crate::{Ids, Topology};

/// The properties of a function that the kernel reads when it sets up ACS.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AcsSubject {
    pub(crate) id: FunctionId,
    pub(crate) ids: Ids,
    pub(crate) port_type: PortType,
    /// The implemented bits, as this kernel reads them. `None` without an ACS capability.
    pub(crate) capability: Option<AcsBits>,
    /// The current value of the control register.
    pub(crate) control: AcsBits,
}

/// The result of setting up ACS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AcsSetup {
    /// The new value of the control register.
    pub(crate) control: AcsBits,
    /// The kernel enabled isolation in an Intel root port that has no ACS capability, through its device-specific
    /// registers.
    pub(crate) intel_pch_enabled: bool,
}

impl Kernel {
    /// Returns the control register of a function after the kernel has set it up, at enumeration or later (linux 7.2
    /// drivers/pci/pci.c: `pci_enable_acs()`).
    pub(crate) fn set_up_acs(&self, topology: &Topology, subject: &AcsSubject) -> AcsSetup {
        let intel_port =
            acs::intel_port(subject.ids, subject.port_type, subject.capability.is_some());
        let mut setup = AcsSetup {
            control: subject.control,
            intel_pch_enabled: self.requests_acs && intel_port == Some(IntelPort::Pch),
        };
        let Some(capability) = subject.capability else {
            return setup;
        };
        let found = subject.control;
        let mut defaults = AcsBits::REQUIRED;
        if self.parameters.no_ats {
            defaults |= AcsBits::TB;
        }
        // Root ports with doubleword registers get the same bits through device-specific code. Root ports without a
        // capability use device-specific registers, which are not set here.
        if self.requests_acs && intel_port != Some(IntelPort::Pch) {
            setup.control = found | (capability & defaults);
        }
        let redirect = AcsBits::REDIRECT;
        let parameters = [
            self.parameters
                .disable_acs_redir
                .as_deref()
                .filter(|value| names(topology, subject.id, value))
                .map(|_| (redirect, AcsBits::NONE)),
            self.parameters
                .config_acs
                .as_deref()
                .and_then(|value| configured(topology, subject.id, value)),
        ];
        for (mask, value) in parameters.into_iter().flatten() {
            setup.control = if intel_port == Some(IntelPort::Spt) {
                // The device-specific code clears only the redirect bits, whatever the parameter requests.
                setup.control & !redirect
            } else {
                found.with(mask, value)
            };
        }
        setup
    }

    /// The bits of an ACS capability that this kernel treats as implemented.
    pub(crate) fn implemented(&self, ids: Ids, capability: AcsBits) -> AcsBits {
        if self.rules.hides_broken_source_validation() && acs::has_broken_source_validation(ids) {
            capability & !AcsBits::SV
        } else {
            capability
        }
    }
}

/// Whether a list of devices contains a function.
fn names(topology: &Topology, id: FunctionId, mut list: &str) -> bool {
    while !list.is_empty() {
        match device_match(topology, id, list) {
            Match::Yes => return true,
            Match::No(rest) => match rest.strip_prefix([';', ',']) {
                Some(next) => list = next,
                None => return false,
            },
            Match::Unreadable => return false,
        }
    }
    false
}

/// The mask and value that `pci=config_acs=` defines for a function. The syntax is `flags@device;flags@device` (linux
/// 7.2 drivers/pci/pci.c: `__pci_config_acs()`).
fn configured(topology: &Topology, id: FunctionId, mut list: &str) -> Option<(AcsBits, AcsBits)> {
    while !list.is_empty() {
        let (flags, devices) = list.split_once('@')?;
        let (mask, value) = flag_bits(flags)?;
        if !AcsBits::CONFIGURABLE.contains(mask) {
            return None;
        }
        match device_match(topology, id, devices) {
            Match::Yes => return Some((mask, value)),
            Match::No(rest) => list = rest.strip_prefix([';', ','])?,
            Match::Unreadable => return None,
        }
    }
    None
}

/// Parses flags. The last character is bit 0. `0` and `1` set the value of a bit, `x` leaves the bit unchanged, and any
/// other character makes the kernel stop. The register has 16 bits; flags of higher bits are ignored.
fn flag_bits(flags: &str) -> Option<(AcsBits, AcsBits)> {
    let (mut mask, mut value) = (0_u16, 0_u16);
    for (flag, shift) in flags.bytes().rev().zip(0_u32..) {
        let bit = 1_u16.checked_shl(shift).unwrap_or(0);
        match flag {
            b'0' => mask |= bit,
            b'1' => {
                mask |= bit;
                value |= bit;
            }
            b'x' | b'X' => {}
            _ => return None,
        }
    }
    Some((
        AcsBits::from_bits_retain(mask),
        AcsBits::from_bits_retain(value),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_read_from_the_right() {
        let bits = |text| flag_bits(text).map(|(mask, value)| (mask.bits(), value.bits()));
        assert_eq!(bits("100x1"), Some((0x1d, 0x11)));
        assert_eq!(bits("1xx"), Some((0x04, 0x04)));
        assert_eq!(bits("0000000"), Some((0x7f, 0)));
        assert_eq!(bits("X"), Some((0, 0)));
        assert_eq!(bits(""), Some((0, 0)));
        assert_eq!(bits("12"), None);
        assert_eq!(bits("1xxxxxxx"), Some((0x80, 0x80)));
        assert_eq!(bits("1xxxxxxxxxxxxxxxx"), Some((0, 0)));
    }
}
