//! Access Control Services: how a port or function handles peer-to-peer requests.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::spec::acs;
use super::{ConfigSpace, Unreadable};

mod egress;
mod setting;

pub use egress::EgressVector;
pub use setting::AcsSetting;

bitflags::bitflags! {
    /// A set of bits of the ACS control register (PCIe r6.0 §6.12, §7.7.11).
    ///
    /// The capability register has the same bits in its low byte, except that bit 7 of the capability register
    /// indicates the enhanced controls. [`Display`](fmt::Display) writes the short names used by `lspci` and this
    /// project, [`LowerHex`](fmt::LowerHex) writes the register value; parsing accepts both.
    ///
    /// ```
    /// use iommu_group::AcsBits;
    ///
    /// let linux_default: AcsBits = "001d".parse()?;
    /// assert_eq!(linux_default.to_string(), "SV RR CR UF");
    /// assert_eq!("sv+uf".parse::<AcsBits>()?, AcsBits::SV | AcsBits::UF);
    /// assert_eq!(format!("{:04x}", linux_default & !AcsBits::REDIRECT), "0011");
    /// # Ok::<(), iommu_group::AcsBitsError>(())
    /// ```
    #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
    pub struct AcsBits: u16 {
        /// Source Validation: the requester ID must belong to a bus below the port.
        const SV = 0x0001;
        /// Translation Blocking: requests marked as translated are blocked.
        const TB = 0x0002;
        /// P2P Request Redirect: peer-to-peer requests are redirected upstream.
        const RR = 0x0004;
        /// P2P Completion Redirect: peer-to-peer completions without Relaxed Ordering are redirected upstream.
        const CR = 0x0008;
        /// Upstream Forwarding: requests and completions whose destination is their ingress port are forwarded
        /// upstream.
        const UF = 0x0010;
        /// P2P Egress Control: a vector defines for each port whether peer-to-peer requests may go there.
        const EC = 0x0020;
        /// Direct Translated P2P: translated requests take the direct route even if RR or EC would redirect them.
        const DT = 0x0040;
        /// I/O Request Blocking (enhanced). In the capability register the bit means that the enhanced controls exist.
        const IB = 0x0080;
        /// Memory requests to the BARs of a downstream port: bit 8 blocks, bit 9 redirects (enhanced).
        const DSP_MT = 0x0300;
        /// Memory requests to the BARs of the upstream port: bit 10 blocks, bit 11 redirects (enhanced).
        const USP_MT = 0x0c00;
        /// Unclaimed Request Redirect (enhanced).
        const UR = 0x1000;
        /// The bits that Linux requires of every port on a path to regard functions as isolated (linux 7.2
        /// drivers/iommu/iommu.c: `REQ_ACS_FLAGS`).
        const REQUIRED = 0x001d;
        /// The bits that keep requests or completions off the direct route (linux 7.2 drivers/pci/p2pdma.c:
        /// `pci_bridge_has_acs_redir()`).
        const REDIRECT = 0x002c;
        /// The bits that `pci=config_acs=` may set (linux 7.2 drivers/pci/pci.c: `__pci_config_acs()`).
        const CONFIGURABLE = 0x007f;

        // All bits of the register are kept, named or not.
        const _ = !0;
    }
}

impl AcsBits {
    /// The empty set.
    pub const NONE: Self = Self::empty();

    /// This set, with the bits in `mask` replaced by those of `value`.
    #[must_use]
    pub const fn with(self, mask: Self, value: Self) -> Self {
        self.difference(mask).union(mask.intersection(value))
    }
}

/// Names of the single bits and of the values of the two-bit fields, for formatting and parsing.
const NAMES: [(&str, u16); 14] = [
    ("SV", 0x0001),
    ("TB", 0x0002),
    ("RR", 0x0004),
    ("CR", 0x0008),
    ("UF", 0x0010),
    ("EC", 0x0020),
    ("DT", 0x0040),
    ("IB", 0x0080),
    ("DSP-MT-BLOCK", 0x0100),
    ("DSP-MT-REDIR", 0x0200),
    ("USP-MT-BLOCK", 0x0400),
    ("USP-MT-REDIR", 0x0800),
    ("UR", 0x1000),
    ("RSVD", 0xe000),
];

impl AcsBits {
    /// The names of the bits, for formatting and parsing.
    #[cfg(feature = "schema")]
    pub(crate) fn names() -> impl Iterator<Item = &'static str> {
        NAMES.iter().map(|(name, _)| *name)
    }
}

impl fmt::Display for AcsBits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut names = NAMES.iter().filter(|(_, bits)| self.bits() & bits != 0);
        match names.next() {
            None => f.write_str("none"),
            Some((first, _)) => {
                f.write_str(first)?;
                names.try_for_each(|(name, _)| write!(f, " {name}"))
            }
        }
    }
}

impl fmt::Debug for AcsBits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:04x}")
    }
}

/// An error for a text that is not a set of ACS bits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{part}` is not an ACS control: expected a register value such as 001d, or names such as SV+RR+CR+UF"
)]
pub struct AcsBitsError {
    /// The invalid part.
    pub part: String,
}

impl FromStr for AcsBits {
    type Err = AcsBitsError;

    /// Parses a hexadecimal value of up to four digits with or without `0x`, `none`, or names joined by `+`, `,` or
    /// spaces. Case is ignored.
    fn from_str(text: &str) -> Result<Self, AcsBitsError> {
        let digits = text.strip_prefix("0x").unwrap_or(text);
        let hexadecimal = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_hexdigit());
        // EC is the only name that consists of hexadecimal digits.
        if hexadecimal && !text.eq_ignore_ascii_case("ec") {
            return u16::from_str_radix(digits, 16)
                .map(Self::from_bits_retain)
                .map_err(|_| AcsBitsError {
                    part: text.to_owned(),
                });
        }
        if text.eq_ignore_ascii_case("none") {
            return Ok(Self::NONE);
        }
        let mut bits = 0;
        for part in text.split(['+', ',', ' ']) {
            bits |= NAMES
                .iter()
                .find(|(name, _)| name.eq_ignore_ascii_case(part))
                .map(|(_, bits)| bits)
                .ok_or_else(|| AcsBitsError {
                    part: part.to_owned(),
                })?;
        }
        Ok(Self::from_bits_retain(bits))
    }
}

impl Serialize for AcsBits {
    /// The register value as four hexadecimal digits.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{self:04x}"))
    }
}

impl<'de> Deserialize<'de> for AcsBits {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl de::Visitor<'_> for Text {
            type Value = AcsBits;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an ACS register value such as \"001d\"")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<AcsBits, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Text)
    }
}

/// ACS capability of a function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acs {
    /// The function has no ACS capability.
    Absent,
    /// The capability could not be read. Its controls may be on or off.
    Unknown(Unreadable),
    /// The function has these registers.
    Known(AcsRegisters),
}

impl Acs {
    /// The registers, if known.
    #[must_use]
    pub fn registers(&self) -> Option<&AcsRegisters> {
        match self {
            Self::Known(registers) => Some(registers),
            Self::Absent | Self::Unknown(_) => None,
        }
    }
}

/// The registers of an ACS capability.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AcsRegisters {
    /// Offset of the capability in configuration space.
    pub offset: u16,
    /// The implemented controls: bits 7:0 of the capability register.
    pub capability: AcsBits,
    /// The enabled controls.
    pub control: AcsBits,
    /// The egress control vector, if egress control is implemented and the vector could be read.
    pub egress: Option<EgressVector>,
    /// Whether the registers are doublewords, with the control register at offset 8. This is an erratum of Intel's 100
    /// and 200 series root ports (linux 7.2 drivers/pci/quirks.c: `pci_quirk_intel_spt_pch_acs()`).
    pub dword_layout: bool,
}

impl AcsRegisters {
    /// Reads the registers of the capability at `offset`.
    pub(super) fn decode(space: &ConfigSpace, offset: u16, dword_layout: bool) -> Option<Self> {
        let at = |register: u16| offset.saturating_add(register);
        let capability = space.u16(at(acs::CAPABILITY))?;
        let [implemented, vector_size] = capability.to_le_bytes();
        let capability = AcsBits::from_bits_retain(u16::from(implemented));
        let control = AcsBits::from_bits_retain(space.u16(at(if dword_layout {
            acs::CONTROL_OF_DWORD_LAYOUT
        } else {
            acs::CONTROL
        }))?);
        let egress = if capability.contains(AcsBits::EC) && !dword_layout {
            EgressVector::decode(space, at(acs::EGRESS_VECTOR), vector_size)
        } else {
            None
        };
        Some(Self {
            offset,
            capability,
            control,
            egress,
            dword_layout,
        })
    }

    /// Whether the controls in bits 12:7 exist.
    #[must_use]
    pub fn enhanced(&self) -> bool {
        self.capability.contains(AcsBits::IB)
    }

    /// Offset of the control register in configuration space, in bytes.
    #[must_use]
    pub fn control_offset(&self) -> u16 {
        self.offset.saturating_add(if self.dword_layout {
            acs::CONTROL_OF_DWORD_LAYOUT
        } else {
            acs::CONTROL
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bits(value: u16) -> AcsBits {
        AcsBits::from_bits_retain(value)
    }

    #[test]
    fn names_and_values() {
        for (text, value) in [
            ("001d", 0x1d),
            ("0x1d", 0x1d),
            ("0", 0),
            ("none", 0),
            ("SV", 1),
            ("ec", 0x20),
            ("EC", 0x20),
            ("ec+sv", 0x21),
            ("sv,tb rr", 7),
            ("ffff", 0xffff),
            ("UR+IB+DSP-MT-BLOCK+USP-MT-REDIR", 0x1980),
        ] {
            assert_eq!(text.parse(), Ok(bits(value)), "{text}");
        }
        for text in ["", "SV+", "XX", "1ffff", "-1", "0x", "1g"] {
            assert!(text.parse::<AcsBits>().is_err(), "{text}");
        }
        assert_eq!(bits(0x5f).to_string(), "SV TB RR CR UF DT");
        assert_eq!(bits(0).to_string(), "none");
        assert_eq!(bits(0x2201).to_string(), "SV DSP-MT-REDIR RSVD");
    }

    #[test]
    fn json_is_the_register_value() {
        assert_eq!(serde_json::to_string(&bits(0x1d)).unwrap(), "\"001d\"");
        assert_eq!(
            serde_json::from_str::<AcsBits>("\"0011\"").unwrap(),
            bits(0x11)
        );
    }

    fn capability(bytes: &[u8]) -> ConfigSpace {
        let mut all = vec![0; 0x140];
        all[0x104..0x104 + bytes.len()].copy_from_slice(bytes);
        ConfigSpace::new(&all)
    }

    #[test]
    fn registers() {
        let registers =
            AcsRegisters::decode(&capability(&[0x5f, 0, 0x1d, 0]), 0x100, false).unwrap();
        assert_eq!(registers.capability, bits(0x5f));
        assert_eq!(registers.control, bits(0x1d));
        assert_eq!(registers.egress, None);
        assert_eq!(registers.control_offset(), 0x106);
        assert!(!registers.enhanced());
    }

    #[test]
    fn registers_of_intels_100_series() {
        let bytes = [0x1f, 0, 0, 0, 0x1d, 0, 0, 0];
        let registers = AcsRegisters::decode(&capability(&bytes), 0x100, true).unwrap();
        assert_eq!(registers.control, bits(0x1d));
        assert_eq!(registers.control_offset(), 0x108);
    }

    #[test]
    fn a_capability_that_was_cut_off_is_not_read() {
        let space = ConfigSpace::new(&vec![0; 0x106]);
        assert_eq!(AcsRegisters::decode(&space, 0x100, false), None);
    }
}
