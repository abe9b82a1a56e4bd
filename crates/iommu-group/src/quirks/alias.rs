//!
//! Devices whose requests use requester IDs other than their own.
//!
//! The tables correspond to linux 7.2 drivers/pci/quirks.c. Each is cited.

use crate::kernel::Rules;
use crate::{Ids, Sbdf};

/// The functions of the same bus whose requester IDs a device may use (linux: `dma_alias_mask`).
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Aliases([u64; 4]);

impl Aliases {
    const NONE: Self = Self([0; 4]);
    const ALL: Self = Self([u64::MAX; 4]);

    fn with(mut self, devfn: u8) -> Self {
        if let Some(word) = self.0.get_mut(usize::from(devfn / 64)) {
            *word |= 1 << (devfn % 64);
        }
        self
    }

    pub(crate) fn contains(&self, devfn: u8) -> bool {
        self.0
            .get(usize::from(devfn / 64))
            .is_some_and(|word| word & (1 << (devfn % 64)) != 0)
    }
}

impl std::fmt::Debug for Aliases {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let all = (0..=u8::MAX).filter(|devfn| self.contains(*devfn));
        f.debug_list().entries(all).finish()
    }
}

/// The known aliases of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AliasRule {
    /// The device has these aliases.
    Known(Aliases),
    /// The device has aliases that Linux reads from the device's memory during setup: Switchtec non-transparent
    /// bridges.
    InDeviceMemory,
}

const fn devfn(device: u8, function: u8) -> u8 {
    (device << 3) | function
}

/// Marvell and vendors of its chips: requests use the requester ID of function 1 (`quirk_dma_func1_alias()`).
fn is_function_1(ids: Ids) -> bool {
    match ids.vendor {
        0x1b4b => matches!(
            ids.device,
            0x9120
                | 0x9123
                | 0x9125
                | 0x9128
                | 0x9130
                | 0x9170
                | 0x9172
                | 0x917a
                | 0x9182
                | 0x9183
                | 0x91a0
                | 0x9215
                | 0x9220
                | 0x9230
                | 0x9235
        ),
        0x1103 => matches!(ids.device, 0x0642 | 0x0645),
        0x197b => ids.device == 0x2392,
        0x1c28 => ids.device == 0x0122,
        _ => false,
    }
}

/// The aliases of a function. `None` if it has none.
pub(crate) fn aliases(ids: Ids, class: u32, sbdf: Sbdf, rules: Rules) -> Option<AliasRule> {
    let known = |aliases| Some(AliasRule::Known(aliases));
    match (ids.vendor, ids.device) {
        // Ricoh, Glenfly: requests use the requester ID of function 0 (`quirk_dma_func0_alias()`).
        (0x1180, 0xe832 | 0xe476) | (0x6766, 0x3d40 | 0x3d41) if sbdf.function() != 0 => {
            known(Aliases::NONE.with(devfn(sbdf.device(), 0)))
        }
        _ if is_function_1(ids) && sbdf.function() != 1 => {
            known(Aliases::NONE.with(devfn(sbdf.device(), 1)))
        }
        // Adaptec 3405 and 3805: requests use the requester ID of a hidden device 01.0 (`quirk_fixed_dma_alias()`).
        (0x9005, 0x0285)
            if ids.subsystem_vendor == 0x9005
                && matches!(ids.subsystem_device, 0x02bb | 0x02bc) =>
        {
            known(Aliases::NONE.with(devfn(1, 0)))
        }
        // Intel MIC x200 (`quirk_mic_x200_dma_alias()`).
        (0x8086, 0x2260 | 0x2264) => known(
            Aliases::NONE
                .with(devfn(0x10, 0))
                .with(devfn(0x11, 0))
                .with(devfn(0x12, 3)),
        ),
        // Intel VCA: five functions of every device (`quirk_pex_vca_alias()`).
        (0x8086, 0x2954 | 0x2955 | 0x2956 | 0x2958 | 0x2959 | 0x295a) => known(
            (0..32_u8)
                .flat_map(|device| (0..5).map(move |function| devfn(device, function)))
                .fold(Aliases::NONE, Aliases::with),
        ),
        // PLX non-transparent bridges (`quirk_plx_ntb_dma_alias()`).
        (0x10b5, 0x87b0 | 0x87b1) => known(Aliases::ALL),
        (0x11f8, device) if class >> 8 == 0x0680 && is_switchtec(device) => {
            Some(AliasRule::InDeviceMemory)
        }
        (0x1055, 0x1001..=0x1006) if class >> 8 == 0x0680 => Some(AliasRule::InDeviceMemory),
        (0x1055, 0x1008) if class >> 8 == 0x0680 && rules != Rules::V7_2 => {
            Some(AliasRule::InDeviceMemory)
        }
        _ => None,
    }
}

/// Switchtec device IDs, generation 3 to 5 (`SWITCHTEC_QUIRK()`): the family in the upper byte, the lanes in the lower.
fn is_switchtec(device: u16) -> bool {
    let [lanes, family] = device.to_le_bytes();
    match family {
        0x85 => {
            matches!(lanes, 0x31..=0x36 | 0x41..=0x46 | 0x51..=0x56 | 0x61..=0x66 | 0x71..=0x76)
        }
        0x40..=0x42 | 0x50..=0x55 => matches!(lanes, 0x00 | 0x84 | 0x68 | 0x52 | 0x36 | 0x28),
        0x43..=0x45 => matches!(lanes, 0x52 | 0x36 | 0x28),
        _ => false,
    }
}

/// Bridges that contain the IOMMU, instead of the root (`quirk_bridge_cavm_thrx2_pcie_root()`).
pub(crate) fn is_translation_root(ids: Ids) -> bool {
    matches!((ids.vendor, ids.device), (0x14e4, 0x9000 | 0x9084))
}

/// PCIe-to-PCI bridges that forward requester IDs unchanged (`quirk_aspeed_pci_bridge_no_alias()`).
pub(crate) fn passes_requester_ids(ids: Ids, rules: Rules) -> bool {
    rules.knows_bridges_without_alias() && (ids.vendor, ids.device) == (0x1a03, 0x1150)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(vendor: u16, device: u16) -> Ids {
        Ids {
            vendor,
            device,
            ..Ids::default()
        }
    }

    fn devfns(ids: Ids, class: u32, at: &str, rules: Rules) -> Option<Vec<u8>> {
        match aliases(ids, class, at.parse().unwrap(), rules)? {
            AliasRule::Known(aliases) => {
                Some((0..=u8::MAX).filter(|d| aliases.contains(*d)).collect())
            }
            AliasRule::InDeviceMemory => Some(vec![]),
        }
    }

    #[test]
    fn aliases_by_device() {
        let of = |vendor, device, at| devfns(ids(vendor, device), 0x01_0601, at, Rules::V7_2);
        assert_eq!(of(0x1180, 0xe832, "03:02.3"), Some(vec![0x10]));
        assert_eq!(of(0x1180, 0xe832, "03:02.0"), None);
        assert_eq!(of(0x1b4b, 0x9230, "03:02.0"), Some(vec![0x11]));
        assert_eq!(of(0x1b4b, 0x9230, "03:02.1"), None);
        assert_eq!(of(0x1b4b, 0x9231, "03:02.0"), None);
        assert_eq!(of(0x197b, 0x2392, "03:00.0"), Some(vec![1]));
        assert_eq!(of(0x8086, 0x2260, "03:00.0"), Some(vec![0x80, 0x88, 0x93]));
        assert_eq!(of(0x8086, 0x2954, "03:00.0").unwrap().len(), 160);
        assert_eq!(of(0x10b5, 0x87b1, "03:00.0").unwrap().len(), 256);
        assert_eq!(of(0x9005, 0x0285, "03:0e.0"), None);
        let adaptec = Ids {
            subsystem_vendor: 0x9005,
            subsystem_device: 0x02bb,
            ..ids(0x9005, 0x0285)
        };
        assert_eq!(devfns(adaptec, 0, "03:0e.0", Rules::V6_12), Some(vec![8]));
    }

    #[test]
    fn switchtec_aliases_are_not_to_be_seen() {
        let of =
            |vendor, device, class, rules| devfns(ids(vendor, device), class, "03:00.1", rules);
        for device in [0x8531, 0x8576, 0x4000, 0x4284, 0x4352, 0x5528] {
            assert_eq!(
                of(0x11f8, device, 0x06_8000, Rules::V7_2),
                Some(vec![]),
                "{device:04x}"
            );
            assert_eq!(
                of(0x11f8, device, 0x06_0400, Rules::V7_2),
                None,
                "{device:04x}"
            );
        }
        for device in [0x8530, 0x8537, 0x4384, 0x4300, 0x5600, 0x4001] {
            assert_eq!(
                of(0x11f8, device, 0x06_8000, Rules::V7_2),
                None,
                "{device:04x}"
            );
        }
        assert_eq!(of(0x1055, 0x1006, 0x06_8000, Rules::V7_2), Some(vec![]));
        assert_eq!(of(0x1055, 0x1008, 0x06_8000, Rules::V7_2), None);
        assert_eq!(of(0x1055, 0x1008, 0x06_8000, Rules::V7_3), Some(vec![]));
    }

    #[test]
    fn bridges() {
        assert!(is_translation_root(ids(0x14e4, 0x9084)));
        assert!(passes_requester_ids(ids(0x1a03, 0x1150), Rules::V7_2));
        assert!(!passes_requester_ids(ids(0x1a03, 0x1150), Rules::V6_12));
    }
}
