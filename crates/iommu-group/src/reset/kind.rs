//! Kinds of resets, and sets of kinds.

use std::fmt;
use std::ops::BitOr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A kind of reset, in the order in which Linux tries them (linux 7.2 drivers/pci/pci.c: `pci_reset_fn_methods[]`; its
/// `bus` is either a slot or a bus reset here).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum ResetKind {
    /// A device-specific procedure that the kernel implements.
    DeviceSpecific,
    /// Reset by firmware (`_RST`).
    Acpi,
    /// Function Level Reset of PCI Express.
    Flr,
    /// Function Level Reset of conventional PCI (Advanced Features capability).
    AfFlr,
    /// A transition to D3hot and back.
    Pm,
    /// Reset of the hot-plug slot: affects everything on the link.
    Slot,
    /// Reset of the bus by the bridge above it: affects everything on the bus and below.
    Bus,
    /// Reset of the bus below a CXL port that masks the reset until it is set to pass it on.
    CxlBus,
}

impl ResetKind {
    /// All kinds, in the order in which Linux tries them.
    pub const ALL: [Self; 8] = [
        Self::DeviceSpecific,
        Self::Acpi,
        Self::Flr,
        Self::AfFlr,
        Self::Pm,
        Self::Slot,
        Self::Bus,
        Self::CxlBus,
    ];

    /// Whether the reset affects everything on a link or bus, not only the function.
    #[must_use]
    pub const fn is_link(self) -> bool {
        matches!(self, Self::Slot | Self::Bus | Self::CxlBus)
    }

    const fn bit(self) -> u8 {
        1 << (self as u8)
    }

    const fn name(self) -> &'static str {
        match self {
            Self::DeviceSpecific => "device-specific",
            Self::Acpi => "acpi",
            Self::Flr => "flr",
            Self::AfFlr => "af-flr",
            Self::Pm => "pm",
            Self::Slot => "slot",
            Self::Bus => "bus",
            Self::CxlBus => "cxl-bus",
        }
    }
}

impl fmt::Display for ResetKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A set of kinds of resets: those that a caller accepts.
///
/// ```
/// use iommu_group::{ResetKind, ResetMask};
///
/// let mask: ResetMask = "func".parse()?;
/// assert!(mask.contains(ResetKind::Flr) && !mask.contains(ResetKind::Bus));
/// assert_eq!("flr+bus".parse::<ResetMask>()?.to_string(), "flr+bus");
/// # Ok::<(), iommu_group::ResetMaskError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ResetMask(u8);

impl ResetMask {
    /// No kinds.
    pub const NONE: Self = Self(0);
    /// Kinds that affect only the function.
    pub const FUNC: Self = Self(
        ResetKind::DeviceSpecific.bit()
            | ResetKind::Acpi.bit()
            | ResetKind::Flr.bit()
            | ResetKind::AfFlr.bit()
            | ResetKind::Pm.bit(),
    );
    /// Kinds that affect a link or bus.
    pub const LINK: Self =
        Self(ResetKind::Slot.bit() | ResetKind::Bus.bit() | ResetKind::CxlBus.bit());
    /// All kinds.
    pub const ANY: Self = Self(Self::FUNC.0 | Self::LINK.0);

    /// Whether a kind is in the set.
    #[must_use]
    pub const fn contains(self, kind: ResetKind) -> bool {
        self.0 & kind.bit() != 0
    }

    /// The kinds in the set, in the order in which Linux tries them.
    pub fn kinds(self) -> impl Iterator<Item = ResetKind> {
        ResetKind::ALL
            .into_iter()
            .filter(move |kind| self.contains(*kind))
    }
}

impl From<ResetKind> for ResetMask {
    fn from(kind: ResetKind) -> Self {
        Self(kind.bit())
    }
}

impl BitOr for ResetMask {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl fmt::Display for ResetMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut kinds = self.kinds();
        match kinds.next() {
            None => f.write_str("none"),
            Some(first) => {
                f.write_str(first.name())?;
                kinds.try_for_each(|kind| write!(f, "+{kind}"))
            }
        }
    }
}

/// The text is not a set of kinds of resets.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{part}` is not a kind of reset: expected device-specific, acpi, flr, af-flr, pm, slot, bus, cxl-bus, func, link or any"
)]
pub struct ResetMaskError {
    /// The invalid part.
    pub part: String,
}

impl From<ResetMask> for String {
    fn from(mask: ResetMask) -> Self {
        mask.to_string()
    }
}

impl TryFrom<String> for ResetMask {
    type Error = ResetMaskError;

    fn try_from(text: String) -> Result<Self, ResetMaskError> {
        text.parse()
    }
}

impl FromStr for ResetMask {
    type Err = ResetMaskError;

    /// Parses names joined by `+` or `,`. The names in the kernel's `reset_method`, with underscores, are accepted too.
    fn from_str(text: &str) -> Result<Self, ResetMaskError> {
        text.split(['+', ',']).try_fold(Self::NONE, |mask, part| {
            let name = part.trim().to_ascii_lowercase().replace('_', "-");
            let more = match name.as_str() {
                "func" => Self::FUNC,
                "link" => Self::LINK,
                "any" => Self::ANY,
                name => ResetKind::ALL
                    .into_iter()
                    .find(|kind| kind.name() == name)
                    .map(Self::from)
                    .ok_or_else(|| ResetMaskError {
                        part: part.to_owned(),
                    })?,
            };
            Ok(mask | more)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks() {
        for (text, shown) in [
            ("flr", "flr"),
            ("bus,flr", "flr+bus"),
            ("af_flr+DEVICE_SPECIFIC", "device-specific+af-flr"),
            ("func", "device-specific+acpi+flr+af-flr+pm"),
            ("link", "slot+bus+cxl-bus"),
            ("any", "device-specific+acpi+flr+af-flr+pm+slot+bus+cxl-bus"),
        ] {
            assert_eq!(text.parse::<ResetMask>().unwrap().to_string(), shown);
        }
        assert_eq!("flr+hard".parse::<ResetMask>().unwrap_err().part, "hard");
        assert!("".parse::<ResetMask>().is_err());
        assert_eq!(ResetMask::NONE.to_string(), "none");
    }

    #[test]
    fn a_kind_hits_a_link_or_a_function() {
        for kind in ResetKind::ALL {
            assert_eq!(ResetMask::LINK.contains(kind), kind.is_link());
            assert_eq!(ResetMask::FUNC.contains(kind), !kind.is_link());
        }
    }
}
