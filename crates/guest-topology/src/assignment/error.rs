//! Errors of resource assignment.

use iommu_group::{AddressRange, Gpa, Sbdf};
use thiserror::Error;

/// The devices cannot all be placed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum AssignError {
    /// There are too many subtrees for a bus.
    #[error("{count} {what}, but there is room for {room}")]
    TooMany {
        /// What there are too many of.
        what: &'static str,
        /// How many are requested.
        count: usize,
        /// How many fit.
        room: usize,
    },
    /// There are not enough bus numbers.
    #[error("the devices need more PCI buses than there are")]
    Buses,
    /// There is no room for the BARs of a subtree.
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
    /// A BAR that must be at its bus address has none, or none that a bridge of the guest can forward.
    #[error("BAR {bar} of the device at {sbdf} in the guest must be at its bus address: {why}")]
    Fixed {
        /// The device in the guest.
        sbdf: Sbdf,
        /// The BAR.
        bar: u8,
        /// The reason.
        why: &'static str,
    },
    /// A fixed window is not forwarded to the bus.
    #[error(
        "the window of {sbdf} in the guest must be at the bus address {window}, and no PCI window is there: \
         guest memory or the limits of a switch are in the way"
    )]
    OutOfReach {
        /// The port in the guest.
        sbdf: Sbdf,
        /// Its window.
        window: AddressRange<Gpa>,
    },
    /// A fixed window overlaps the window of an existing port.
    #[error(
        "the window of {sbdf} in the guest must be at the bus address {window}, and {taken} is taken"
    )]
    Taken {
        /// The port in the guest.
        sbdf: Sbdf,
        /// Its window.
        window: AddressRange<Gpa>,
        /// The existing window.
        taken: AddressRange<Gpa>,
    },
    /// Two fixed windows overlap.
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
