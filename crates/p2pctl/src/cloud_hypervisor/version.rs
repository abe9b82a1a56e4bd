//! Versions of cloud-hypervisor.

use std::fmt;

/// A release, as in `cloud-hypervisor --version` and `vmm.ping`: `v53.0`, `v53.0-12-g1234`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version {
    major: u32,
    minor: u32,
}

impl Version {
    /// The oldest supported version.
    pub(crate) const OLDEST: Self = Self::new(51, 0);
    /// The first version that can switch off the mapping of BARs (`--platform vfio_p2p_dma=off`).
    const P2P_SWITCH: Self = Self::new(52, 0);

    pub(crate) const fn new(major: u32, minor: u32) -> Self {
        Self { major, minor }
    }

    /// Finds the first word that parses as a version.
    pub(crate) fn find(text: &str) -> Option<Self> {
        text.split_ascii_whitespace().find_map(|word| {
            let number = word.strip_prefix('v')?;
            let mut parts = number.split(['.', '-', '+']);
            let major = parts.next()?.parse().ok()?;
            let minor = parts.next().map_or(Some(0), |part| part.parse().ok())?;
            Some(Self::new(major, minor))
        })
    }

    /// Whether the version can switch off the mapping of BARs.
    pub(crate) fn has_p2p_switch(self) -> bool {
        self >= Self::P2P_SWITCH
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v{}.{}", self.major, self.minor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found_in_what_a_program_says() {
        for (text, version) in [
            ("cloud-hypervisor v53.0", Some(Version::new(53, 0))),
            ("cloud-hypervisor v51.1-dirty\n", Some(Version::new(51, 1))),
            ("cloud-hypervisor v54.0.0", Some(Version::new(54, 0))),
            ("v53.0-120-gabc", Some(Version::new(53, 0))),
            ("cloud-hypervisor unknown", None),
            ("", None),
        ] {
            assert_eq!(Version::find(text), version, "{text}");
        }
    }

    #[test]
    fn the_switch_came_with_52() {
        assert!(!Version::find("v51.2").unwrap().has_p2p_switch());
        assert!(Version::find("v52.0").unwrap().has_p2p_switch());
    }
}
