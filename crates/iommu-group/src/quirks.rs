//! What Linux knows of particular devices, as tables.

pub(crate) mod acs;
pub(crate) mod alias;
pub(crate) mod reset;

/// Device ids, of one vendor.
pub(crate) enum Devices {
    /// All of them.
    Any,
    /// These, in ascending order.
    Listed(&'static [u16]),
    /// Those in these ranges, both ends included.
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
