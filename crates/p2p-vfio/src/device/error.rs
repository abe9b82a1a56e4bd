//! Errors of attaching and detaching a device.

use std::io;

use guest_topology::BarError;
use iommu_group::{AddressRange, Gpa, Sbdf};
use thiserror::Error;

use crate::context::ContextError;

use super::bar_mappings::BarMappingError;

/// A device could not be assigned. It was returned to VFIO in the state in which it was found.
#[derive(Debug, Error)]
pub enum AttachError {
    /// It could not be opened in its IOMMU context.
    #[error(transparent)]
    Context(#[from] ContextError),
    /// Its configuration space could not be read or written.
    #[error("cannot access configuration space of {sbdf}: {error}")]
    Config {
        /// The device.
        sbdf: Sbdf,
        /// The kernel's error.
        error: io::Error,
    },
    /// The device does not respond: configuration space reads as all ones.
    #[error("{sbdf} does not answer; is it still there and powered?")]
    Absent {
        /// The device.
        sbdf: Sbdf,
    },
    /// It has an invalid BAR.
    #[error("{sbdf}: {error}")]
    Bar {
        /// The device.
        sbdf: Sbdf,
        /// The error of the BAR.
        error: BarError,
    },
    /// A BAR could not be mapped into this process.
    #[error("cannot map BAR {bar} of {sbdf}: {error}")]
    MapBar {
        /// The device.
        sbdf: Sbdf,
        /// The BAR.
        bar: u8,
        /// The kernel's error.
        error: io::Error,
    },
    /// The eventfds for errors and for requests of the host could not be set up.
    #[error("cannot listen to what the host tells of {sbdf}: {error}")]
    VfioEvents {
        /// The device.
        sbdf: Sbdf,
        /// The kernel's error.
        error: io::Error,
    },
    /// Its interrupts could not be set up.
    #[error("cannot set up interrupts of {sbdf}: {error}")]
    Interrupts {
        /// The device.
        sbdf: Sbdf,
        /// The error of VFIO or the hypervisor.
        error: io::Error,
    },
    /// A BAR could not be mapped for the guest or the peers.
    #[error(transparent)]
    BarMapping(#[from] BarMappingError),
    /// A BAR has an address that the bridges above the device do not forward.
    #[error("BAR {bar} of {sbdf} is at {range}, to which no bridge leads")]
    Beyond {
        /// The device.
        sbdf: Sbdf,
        /// The BAR.
        bar: u8,
        /// Guest-physical range of the BAR.
        range: AddressRange<Gpa>,
    },
    /// The clique capability could not be added.
    #[error("cannot tell the guest's driver the P2P clique of {sbdf}: {why}")]
    Clique {
        /// The device.
        sbdf: Sbdf,
        /// The reason.
        why: &'static str,
    },
}

/// A device could not be detached. It does no DMA unless its command register could not be written.
/// [`detach`](super::AssignedDevice::detach) can be called again.
#[derive(Debug, Error)]
pub enum DetachError {
    /// A BAR is still mapped.
    #[error(transparent)]
    BarMapping(#[from] BarMappingError),
    /// Its interrupts could not be turned off.
    #[error("cannot turn interrupts of {sbdf} off: {error}")]
    Interrupts {
        /// The device.
        sbdf: Sbdf,
        /// The error of VFIO or the hypervisor.
        error: io::Error,
    },
    /// Its command register could not be written.
    #[error("cannot stop {sbdf}: {error}")]
    Config {
        /// The device.
        sbdf: Sbdf,
        /// The kernel's error.
        error: io::Error,
    },
}
