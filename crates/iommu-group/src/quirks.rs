//! Tables of Linux's quirks for particular devices.

pub(crate) mod acs;
pub(crate) mod alias;
pub(crate) mod reset;

/// Device IDs of one vendor.
pub(crate) enum Devices {
    /// All devices.
    Any,
    /// The listed devices, in ascending order.
    Listed(&'static [u16]),
    /// The devices in these ranges, both ends included.
    Ranges(&'static [(u16, u16)]),
}

impl Devices {
    pub(crate) fn contains(&self, device: u16) -> bool {
        match self {
            Self::Any => true,
            Self::Listed(ids) => ids.contains(&device),
            Self::Ranges(ranges) => ranges
                .iter()
                .any(|(first, last)| (*first..=*last).contains(&device)),
        }
    }
}
