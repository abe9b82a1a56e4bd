//! Capabilities in the first 256 bytes, other than PCI Express.

use super::ConfigSpace;
use super::spec::{af, msi, msix, pm};

/// PCI Power Management (PCIe r6.0 §7.5.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PowerManagement {
    /// Power state: 0 to 3 for D0 to D3hot.
    pub state: u8,
    /// Whether the function keeps its state on the transition from D3hot to D0. If not, the transition resets it.
    pub no_soft_reset: bool,
}

impl PowerManagement {
    pub(super) fn decode(space: &ConfigSpace, offset: u16) -> Option<Self> {
        let control = space.u16(offset.saturating_add(pm::CONTROL))?;
        Some(Self {
            state: u8::try_from(control & pm::CONTROL_STATE).unwrap_or(0),
            no_soft_reset: control & pm::CONTROL_NO_SOFT_RESET != 0,
        })
    }
}

/// Advanced Features: Function Level Reset for conventional PCI.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AdvancedFeatures {
    /// Whether the function reports pending transactions. Linux uses the reset only if it does.
    pub transactions_pending: bool,
    /// Whether the function supports Function Level Reset.
    pub flr: bool,
}

impl AdvancedFeatures {
    pub(super) fn decode(space: &ConfigSpace, offset: u16) -> Option<Self> {
        let capabilities = space.u8(offset.saturating_add(af::CAPABILITIES))?;
        Some(Self {
            transactions_pending: capabilities & af::TRANSACTIONS_PENDING != 0,
            flr: capabilities & af::FLR != 0,
        })
    }
}

/// Message Signaled Interrupts (PCIe r6.0 §7.7.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Msi {
    /// Whether MSI is enabled.
    pub enabled: bool,
    /// Number of vectors that the function can use, 1 to 32.
    pub vectors: u8,
    /// Whether the function supports addresses above 4 GiB.
    pub wide: bool,
    /// Whether the function supports masking of single vectors.
    pub maskable: bool,
}

impl Msi {
    pub(super) fn decode(space: &ConfigSpace, offset: u16) -> Option<Self> {
        let control = space.u16(offset.saturating_add(msi::CONTROL))?;
        // Values 6 and 7 are reserved. The maximum is 32 vectors.
        let exponent = ((control >> 1) & 0x7).min(5);
        Some(Self {
            enabled: control & msi::CONTROL_ENABLE != 0,
            vectors: 1 << exponent,
            wide: control & msi::CONTROL_64BIT != 0,
            maskable: control & msi::CONTROL_MASKING != 0,
        })
    }
}

/// Message Signaled Interrupts with a table in a BAR (PCIe r6.0 §7.7.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MsiX {
    /// Whether MSI-X is enabled.
    pub enabled: bool,
    /// Number of table entries, 1 to 2048.
    pub vectors: u16,
    /// Number of the BAR that contains the table, 0 to 7 (6 and 7 are reserved).
    pub table_bar: u8,
    /// Offset of the table in that BAR, in bytes.
    pub table_offset: u32,
    /// Number of the BAR that contains the pending bits.
    pub pending_bar: u8,
    /// Offset of the pending bits in that BAR, in bytes.
    pub pending_offset: u32,
}

impl MsiX {
    pub(super) fn decode(space: &ConfigSpace, offset: u16) -> Option<Self> {
        let control = space.u16(offset.saturating_add(msix::CONTROL))?;
        let table = space.u32(offset.saturating_add(msix::TABLE))?;
        let pending = space.u32(offset.saturating_add(msix::PENDING))?;
        let bar = |register: u32| u8::try_from(register & msix::BAR_INDICATOR).unwrap_or(0);
        Some(Self {
            enabled: control & msix::CONTROL_ENABLE != 0,
            vectors: (control & msix::CONTROL_TABLE_SIZE).saturating_add(1),
            table_bar: bar(table),
            table_offset: table & !msix::BAR_INDICATOR,
            pending_bar: bar(pending),
            pending_offset: pending & !msix::BAR_INDICATOR,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space(bytes: &[u8]) -> ConfigSpace {
        let mut all = vec![0; 256];
        all[0x40..0x40 + bytes.len()].copy_from_slice(bytes);
        ConfigSpace::new(&all)
    }

    #[test]
    fn power_management() {
        let found = PowerManagement::decode(&space(&[1, 0, 3, 0, 0x0b, 0]), 0x40).unwrap();
        assert_eq!(
            found,
            PowerManagement {
                state: 3,
                no_soft_reset: true
            }
        );
    }

    #[test]
    fn advanced_features() {
        let found = AdvancedFeatures::decode(&space(&[0x13, 0, 6, 0x02]), 0x40).unwrap();
        assert_eq!(
            found,
            AdvancedFeatures {
                transactions_pending: false,
                flr: true
            }
        );
    }

    #[test]
    fn msi() {
        let found = Msi::decode(&space(&[5, 0, 0x8b, 0x01]), 0x40).unwrap();
        assert_eq!(
            found,
            Msi {
                enabled: true,
                vectors: 32,
                wide: true,
                maskable: true
            }
        );
        assert_eq!(
            Msi::decode(&space(&[5, 0, 0x0e, 0]), 0x40).unwrap().vectors,
            32
        );
        assert_eq!(Msi::decode(&space(&[5, 0, 0, 0]), 0x40).unwrap().vectors, 1);
    }

    #[test]
    fn msi_x() {
        let bytes = [0x11, 0, 0xff, 0x87, 0x03, 0x20, 0, 0, 0x04, 0x30, 0, 0];
        let found = MsiX::decode(&space(&bytes), 0x40).unwrap();
        assert_eq!(
            found,
            MsiX {
                enabled: true,
                vectors: 2048,
                table_bar: 3,
                table_offset: 0x2000,
                pending_bar: 4,
                pending_offset: 0x3000,
            }
        );
    }
}
