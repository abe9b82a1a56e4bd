//! Decoding of a configuration space.

use super::list::CapOffsets;
use super::spec::{self, dvsec};
use super::{
    Acs, AcsRegisters, AdvancedFeatures, Ari, Ats, ConfigError, ConfigSpace, Express, Header, Msi,
    MsiX, PowerManagement, Sriov, Unreadable,
};
use crate::quirks::acs::has_dword_registers;

/// Decoded configuration space. Decoding never fails: missing or invalid parts are left out. `faults` lists the parts
/// that should exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The header; `None` if it could not be read.
    pub header: Option<Header>,
    /// Why some capabilities are unknown, if any.
    pub hidden: Option<Unreadable>,
    /// The PCI Express capability.
    pub express: Option<Express>,
    /// Access Control Services.
    pub acs: Acs,
    /// Address Translation Services.
    pub ats: Option<Ats>,
    /// Alternative Routing-ID Interpretation.
    pub ari: Option<Ari>,
    /// SR-IOV capability of a physical function.
    pub sriov: Option<Sriov>,
    /// Power management.
    pub power_management: Option<PowerManagement>,
    /// Advanced features of conventional PCI.
    pub advanced_features: Option<AdvancedFeatures>,
    /// MSI.
    pub msi: Option<Msi>,
    /// MSI-X.
    pub msi_x: Option<MsiX>,
    /// Whether a CXL port forwards secondary bus resets. `None` if the function is not a CXL port.
    pub cxl_port_unmasks_reset: Option<bool>,
    /// Errors found while decoding.
    pub faults: Vec<ConfigError>,
}

impl Config {
    /// Decodes the bytes of a configuration space.
    #[must_use]
    pub fn decode(space: &ConfigSpace) -> Self {
        let mut config = Self {
            header: None,
            hidden: Some(Unreadable::Unreachable),
            express: None,
            acs: Acs::Unknown(Unreadable::Unreachable),
            ats: None,
            ari: None,
            sriov: None,
            power_management: None,
            advanced_features: None,
            msi: None,
            msi_x: None,
            cxl_port_unmasks_reset: None,
            faults: Vec::new(),
        };
        if space.is_unreachable() || space.is_empty() {
            return config;
        }
        let Some(header) = Header::decode(space) else {
            config.hidden = Some(Unreadable::Truncated);
            config.acs = Acs::Unknown(Unreadable::Truncated);
            return config;
        };
        let status = if header.has_capabilities {
            spec::header::STATUS_CAPABILITIES
        } else {
            0
        };
        let found = CapOffsets::find(space, header.layout_number(), status, &mut config.faults);
        config.hidden = hidden(space, &header, found.cut);
        let at = |offset: u16| (offset != 0).then_some(offset);
        config.express = at(found.express).and_then(|o| Express::decode(space, o));
        config.power_management =
            at(found.power_management).and_then(|o| PowerManagement::decode(space, o));
        config.advanced_features =
            at(found.advanced_features).and_then(|o| AdvancedFeatures::decode(space, o));
        config.msi = at(found.msi).and_then(|o| Msi::decode(space, o));
        config.msi_x = at(found.msi_x).and_then(|o| MsiX::decode(space, o));
        config.ats = at(found.ats).and_then(|o| Ats::decode(space, o));
        config.ari = at(found.ari).and_then(|o| Ari::decode(space, o));
        config.sriov = at(found.sriov).and_then(|o| Sriov::decode(space, o));
        config.cxl_port_unmasks_reset = at(found.cxl_port)
            .and_then(|o| space.u16(o.saturating_add(dvsec::CXL_PORT_CONTROL)))
            .map(|control| control & dvsec::CXL_PORT_CONTROL_UNMASK_SBR != 0);
        config.acs = config.decode_acs(space, &header, found.acs);
        config.header = Some(header);
        config
    }

    fn decode_acs(&mut self, space: &ConfigSpace, header: &Header, offset: u16) -> Acs {
        if offset == 0 {
            return match self.hidden {
                // A function without a list of capabilities has no PCI Express capability and therefore no extended
                // capabilities, even if some bytes are hidden. If root sees only 256 bytes, Linux finds no extended
                // capabilities either.
                Some(reason) if header.has_capabilities => Acs::Unknown(reason),
                _ => Acs::Absent,
            };
        }
        let dword_layout = self
            .express
            .is_some_and(|express| has_dword_registers(header.ids, express.port_type));
        AcsRegisters::decode(space, offset, dword_layout).map_or_else(
            || {
                self.faults.push(ConfigError::Truncated { at: offset });
                Acs::Unknown(Unreadable::Truncated)
            },
            Acs::Known,
        )
    }
}

/// Why needed parts of the space are unreadable, if any.
fn hidden(space: &ConfigSpace, header: &Header, cut: bool) -> Option<Unreadable> {
    let len = space.visible();
    if len < spec::LEGACY_BYTES {
        // Visible to an unprivileged reader: 64 bytes, or 128 for a CardBus bridge.
        let shown_to_all = if header.layout_number() == 2 { 128 } else { 64 };
        return header.has_capabilities.then_some(if len == shown_to_all {
            Unreadable::Unprivileged
        } else {
            Unreadable::Truncated
        });
    }
    cut.then_some(Unreadable::Truncated)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::PortType;

    /// A root port with PCI Express at 0x40 and ACS at 0x100.
    fn root_port() -> Vec<u8> {
        let mut all = vec![0; 4096];
        all[..4].copy_from_slice(&[0x86, 0x80, 0x20, 0x34]);
        all[0x06] = 0x10;
        all[0x09..0x0c].copy_from_slice(&[0x00, 0x04, 0x06]);
        all[0x0e] = 0x81;
        all[0x34] = 0x40;
        all[0x40] = 0x10;
        all[0x42] = 0x42;
        all[0x100..0x108].copy_from_slice(&[0x0d, 0, 1, 0, 0x5f, 0, 0x1d, 0]);
        all
    }

    fn decode(bytes: &[u8]) -> Config {
        Config::decode(&ConfigSpace::new(bytes))
    }

    #[test]
    fn all_of_it() {
        let config = decode(&root_port());
        let header = config.header.unwrap();
        assert_eq!(
            (header.ids.vendor, header.ids.device, header.class),
            (0x8086, 0x3420, 0x06_0400)
        );
        assert!(header.multifunction);
        assert_eq!(config.express.unwrap().port_type, PortType::RootPort);
        assert_eq!(
            config.acs.registers().unwrap().control,
            crate::AcsBits::REQUIRED
        );
        assert_eq!((config.hidden, config.faults), (None, vec![]));
    }

    #[test]
    fn what_each_reader_can_know_of_acs() {
        let all = root_port();
        for (len, acs, hidden) in [
            (
                64,
                Acs::Unknown(Unreadable::Unprivileged),
                Some(Unreadable::Unprivileged),
            ),
            (
                100,
                Acs::Unknown(Unreadable::Truncated),
                Some(Unreadable::Truncated),
            ),
            // Linux also finds no extended capabilities in this space.
            (256, Acs::Absent, None),
            (0x106, Acs::Unknown(Unreadable::Truncated), None),
        ] {
            let config = decode(&all[..len]);
            assert_eq!((config.acs, config.hidden), (acs, hidden), "{len}");
        }
        assert_eq!(decode(&all[..63]).acs, Acs::Unknown(Unreadable::Truncated));
        assert_eq!(decode(&all[..63]).header, None);
        assert_eq!(
            decode(&[0xff; 64]).acs,
            Acs::Unknown(Unreadable::Unreachable)
        );
        assert_eq!(decode(&[]).acs, Acs::Unknown(Unreadable::Unreachable));
    }

    #[test]
    fn without_a_list_of_capabilities_64_bytes_tell_all() {
        let mut all = root_port();
        all[0x06] = 0;
        let config = decode(&all[..64]);
        assert_eq!((config.acs, config.hidden), (Acs::Absent, None));
    }

    #[test]
    fn doubleword_registers_only_where_the_erratum_is() {
        let mut all = root_port();
        all[2..4].copy_from_slice(&[0x10, 0xa1]);
        all[0x10c] = 0;
        all[0x106] = 0;
        all[0x108] = 0x11;
        let acs = decode(&all).acs;
        assert!(acs.registers().unwrap().dword_layout);
        assert_eq!(acs.registers().unwrap().control.bits(), 0x11);
        // The same device ID on a function that is not a root port.
        all[0x42] = 0x62;
        assert!(!decode(&all).acs.registers().unwrap().dword_layout);
    }

    #[test]
    fn arbitrary_bytes_are_decoded_without_panic() {
        let mut seed = 0x2545_f491_4f6c_dd1d_u64;
        let mut next = || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed
        };
        for round in 0..20_000_u64 {
            let len = usize::try_from(next() % 4200).unwrap();
            let mut bytes: Vec<u8> = (0..len.div_ceil(8))
                .flat_map(|_| next().to_le_bytes())
                .collect();
            bytes.truncate(len);
            // Half of the rounds get a plausible start, so that the lists are followed.
            if round % 2 == 0 && len > 0x110 {
                bytes[..0x40].copy_from_slice(&root_port()[..0x40]);
                bytes[0x100] = 0x0d;
            }
            let config = decode(&bytes);
            assert!(config.faults.len() <= 3);
        }
    }
}
