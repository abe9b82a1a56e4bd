//! The operator's consent to an exposure or to unsafe interrupts.

use std::fmt;

use super::Location;

/// How the operator accepts that a device is reachable without the IOMMU, or that interrupts are not isolated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Consent {
    /// An entry of the policy file.
    File {
        /// The operator's reason.
        why: String,
        /// Where the entry is.
        location: Location,
    },
    /// An option or a request names the device.
    Named,
}

impl fmt::Display for Consent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { why, location } => write!(f, "accepted: {why} (rule at {location})"),
            Self::Named => f.write_str("accepted by name"),
        }
    }
}
