//! Rules that differ between kernel versions.

use serde::{Deserialize, Serialize};

///
/// A set of rules, named after the first release in which they were verified.
///
/// All versions compute groups in the same way; the quirk tables and the times of ACS setup differ. A release between
/// two versions uses the older set.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub enum Rules {
    /// Linux 6.12.
    #[serde(rename = "6.12")]
    V6_12,
    /// Linux 7.2.
    #[default]
    #[serde(rename = "7.2")]
    V7_2,
    /// Linux 7.3.
    #[serde(rename = "7.3")]
    V7_3,
}

impl Rules {
    /// The rules of a release such as `6.12.95+deb12-amd64`. A release that cannot be parsed gets the current rules.
    #[must_use]
    pub fn of_release(release: &str) -> Self {
        let mut numbers = release
            .split(|c: char| !c.is_ascii_digit())
            .map(|digits| digits.parse::<u32>().ok());
        match (numbers.next().flatten(), numbers.next().flatten()) {
            (Some(major), Some(minor)) if (major, minor) < (7, 2) => Self::V6_12,
            (Some(7), Some(2)) | (None, _) | (_, None) => Self::V7_2,
            (Some(_), Some(_)) => Self::V7_3,
        }
    }

    /// Whether the kernel sets up ACS again when a driver is bound to a port (linux 7.2 drivers/pci/pci-driver.c:
    /// `pci_dma_configure()`).
    #[must_use]
    pub fn bind_sets_acs(self) -> bool {
        self >= Self::V7_2
    }

    /// Whether `drivers_autoprobe` applies to functions that a rescan finds (linux 7.2 drivers/pci/bus.c:
    /// `pci_bus_add_device()`).
    #[must_use]
    pub fn autoprobe_holds_on_rescan(self) -> bool {
        self >= Self::V7_2
    }

    /// Whether source validation of two IDT switches counts as not implemented (linux 7.2 drivers/pci/quirks.c:
    /// `pci_disable_broken_acs_cap()`).
    pub(crate) fn hides_broken_source_validation(self) -> bool {
        self >= Self::V7_2
    }

    /// Whether an ASPEED bridge forwards requester IDs unchanged (linux 7.2 drivers/pci/quirks.c:
    /// `quirk_aspeed_pci_bridge_no_alias()`).
    pub(crate) fn knows_bridges_without_alias(self) -> bool {
        self >= Self::V7_2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases() {
        for (release, rules) in [
            ("6.1.0-28-amd64", Rules::V6_12),
            ("6.12.95+deb12-amd64", Rules::V6_12),
            ("7.1.3", Rules::V6_12),
            ("7.2.12+deb13-amd64", Rules::V7_2),
            ("7.2-rc4", Rules::V7_2),
            ("7.3.4", Rules::V7_3),
            ("8.0.0", Rules::V7_3),
            ("custom", Rules::V7_2),
            ("", Rules::V7_2),
        ] {
            assert_eq!(Rules::of_release(release), rules, "{release}");
        }
    }
}
