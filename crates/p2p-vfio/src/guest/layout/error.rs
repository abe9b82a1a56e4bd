//! Why devices cannot all be placed.

use iommu_group::Sbdf;
use thiserror::Error;

use crate::address::{AddressRange, Gpa};

/// Why devices cannot all be placed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum LayoutError {
    /// Too many branches for the root bus or slots for a switch.
    #[error("{count} {what}, but a PCI bus has room for {room}")]
    TooMany {
        /// What there is too much of.
        what: &'static str,
        /// How many there are.
        count: usize,
        /// How many fit.
        room: usize,
    },
    /// More than 256 buses.
    #[error("the devices need more than 256 PCI buses")]
    Buses,
    /// The BARs of a branch find no room.
    #[error(
        "{kind} BARs need {needed_bytes} bytes, aligned to {align_bytes}, and there is no room for them"
    )]
    Aperture {
        /// Which BARs.
        kind: &'static str,
        /// Their sum with bridge granularity, in bytes.
        needed_bytes: u64,
        /// The largest alignment, in bytes.
        align_bytes: u64,
    },
    /// A BAR must be at its bus address, and has none, or not one that a bridge of the guest can forward.
    #[error("BAR {bar} of the device at {sbdf} in the guest must be at its bus address: {why}")]
    Fixed {
        /// The device in the guest.
        sbdf: Sbdf,
        /// The BAR.
        bar: u8,
        /// What is wrong with that.
        why: &'static str,
    },
    /// Two windows that must be where they are overlap.
    #[error(
        "the windows of {a} and {b} in the guest must be at bus addresses that overlap: {first} and {second}"
    )]
    Overlap {
        /// A port in the guest.
        a: Sbdf,
        /// Its window.
        first: AddressRange<Gpa>,
        /// Another port, or the one above it.
        b: Sbdf,
        /// Its window.
        second: AddressRange<Gpa>,
    },
}
