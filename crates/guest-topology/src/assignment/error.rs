//! Why devices cannot all be placed.

use iommu_group::{AddressRange, Gpa, Sbdf};
use thiserror::Error;

/// Why devices cannot all be placed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum AssignError {
    /// Too many subtrees for a bus.
    #[error("{count} {what}, but there is room for {room}")]
    TooMany {
        /// What there is too much of.
        what: &'static str,
        /// How many there are.
        count: usize,
        /// How many fit.
        room: usize,
    },
    /// No bus numbers are left.
    #[error("the devices need more PCI buses than there are")]
    Buses,
    /// The BARs of a subtree find no room.
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
    /// A window that must be where it is does not lead to the bus.
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
    /// A window that must be where it is would be on one that is there already.
    #[error(
        "the window of {sbdf} in the guest must be at the bus address {window}, and {taken} is taken"
    )]
    Taken {
        /// The port in the guest.
        sbdf: Sbdf,
        /// Its window.
        window: AddressRange<Gpa>,
        /// What is there.
        taken: AddressRange<Gpa>,
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
