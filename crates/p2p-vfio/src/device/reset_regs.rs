//! Configuration registers whose writes have side effects: function resets and the power state.

use iommu_group::spec::{af, cap, express, pm};

use super::capability::{self, Capability};

/// Upper byte of PCI Express device control, and its bit that initiates a function level reset.
const DEVICE_CONTROL_HIGH: u16 = express::DEVICE_CONTROL + 1;
const DEVICE_CONTROL_HIGH_FLR: u8 = express::DEVICE_CONTROL_FLR.to_le_bytes()[1];

/// A byte of configuration space that controls the function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ResetReg {
    /// Upper half of PCI Express device control; bit 7 initiates a function level reset (PCIe r6.0 §7.5.3.4).
    Express,
    /// Advanced features control; bit 0 initiates a function level reset.
    AdvancedFeatures,
    /// Lower quarter of power management control/status; bits 1:0 are the state.
    Power,
}

impl ResetReg {
    /// The bit that initiates a reset, which reads as zero.
    pub(super) fn reset_bit(self) -> u8 {
        match self {
            Self::Express => DEVICE_CONTROL_HIGH_FLR,
            Self::AdvancedFeatures => af::CONTROL_FLR,
            Self::Power => 0,
        }
    }
}

/// Offsets of a function's reset and power registers.
#[derive(Debug, Default)]
pub(super) struct ResetRegs {
    device_control: Option<u16>,
    advanced: Option<u16>,
    power: Option<u16>,
    /// Whether the transition from D3hot to D0 resets the function.
    pub(super) soft_reset: bool,
}

impl ResetRegs {
    /// Finds the registers in the initial configuration space.
    pub(super) fn find(config: &[u8]) -> Self {
        let mut found = Self::default();
        for Capability { id, offset } in capability::standard(config) {
            let register = |at: u16| capability::dword(config, offset.saturating_add(at));
            match id {
                cap::EXPRESS
                    if register(express::DEVICE_CAPABILITIES)
                        .is_some_and(|caps| caps & express::DEVICE_CAPABILITIES_FLR != 0) =>
                {
                    found.device_control = offset.checked_add(DEVICE_CONTROL_HIGH);
                }
                cap::ADVANCED_FEATURES
                    if register(0).is_some_and(|r| r.to_le_bytes()[3] & af::FLR != 0) =>
                {
                    found.advanced = offset.checked_add(af::CONTROL);
                }
                cap::POWER_MANAGEMENT => {
                    found.power = offset.checked_add(pm::CONTROL);
                    let keeps_state = u32::from(pm::CONTROL_NO_SOFT_RESET);
                    found.soft_reset = register(pm::CONTROL).unwrap_or(0) & keeps_state == 0;
                }
                _ => {}
            }
        }
        found
    }

    /// The register at `offset`, if it is one of these.
    pub(super) fn at(&self, offset: u16) -> Option<ResetReg> {
        [
            (self.device_control, ResetReg::Express),
            (self.advanced, ResetReg::AdvancedFeatures),
            (self.power, ResetReg::Power),
        ]
        .into_iter()
        .find_map(|(at, control)| (at == Some(offset)).then_some(control))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Vec<u8> {
        let mut bytes = vec![0; 256];
        let mut put = |at: usize, data: &[u8]| bytes[at..at + data.len()].copy_from_slice(data);
        put(0x06, &[0x10]);
        put(0x34, &[0x40]);
        put(0x40, &[0x01, 0x50, 0, 0, 0x08]);
        put(0x50, &[0x10, 0x90, 0, 0, 0, 0, 0, 0x10]);
        put(0x90, &[0x13, 0x00, 0x06, 0x03]);
        bytes
    }

    #[test]
    fn controls_are_where_the_capabilities_are() {
        let controls = ResetRegs::find(&config());
        assert_eq!(controls.at(0x59), Some(ResetReg::Express));
        assert_eq!(controls.at(0x94), Some(ResetReg::AdvancedFeatures));
        assert_eq!(controls.at(0x44), Some(ResetReg::Power));
        assert_eq!(controls.at(0x58), None);
        assert!(!controls.soft_reset);
    }

    #[test]
    fn what_the_function_cannot_do_controls_nothing() {
        let mut bytes = config();
        bytes[0x57] = 0;
        bytes[0x93] = 0x01;
        bytes[0x44] = 0;
        let controls = ResetRegs::find(&bytes);
        assert_eq!(controls.at(0x59), None);
        assert_eq!(controls.at(0x94), None);
        assert!(controls.soft_reset);
    }

    #[test]
    fn a_capability_at_the_end_of_the_space_is_harmless() {
        let mut bytes = vec![0; 256];
        bytes[0x06] = 0x10;
        bytes[0x34] = 0xfc;
        bytes[0xfc] = 0x10;
        assert_eq!(ResetRegs::find(&bytes).at(0x105), None);
    }
}
