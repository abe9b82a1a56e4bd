//! Why a device could not be assigned or taken away.

use std::io;

use guest_topology::BarError;
use iommu_group::{AddressRange, Gpa, Sbdf};
use thiserror::Error;

use crate::context::ContextError;

use super::bar_mappings::BarMappingError;

/// Why a device could not be assigned. It was given back to VFIO as it was found.
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
        /// What the kernel said.
        error: io::Error,
    },
    /// It does not answer: configuration space reads as all ones.
    #[error("{sbdf} does not answer; is it still there and powered?")]
    Absent {
        /// The device.
        sbdf: Sbdf,
    },
    /// It has a BAR that PCI does not allow.
    #[error("{sbdf}: {error}")]
    Bar {
        /// The device.
        sbdf: Sbdf,
        /// The BAR.
        error: BarError,
    },
    /// A BAR could not be mapped into this process.
    #[error("cannot map BAR {bar} of {sbdf}: {error}")]
    MapBar {
        /// The device.
        sbdf: Sbdf,
        /// The BAR.
        bar: u8,
        /// What the kernel said.
        error: io::Error,
    },
    /// The host could not be asked to tell of errors, or when it wants the device back.
    #[error("cannot listen to what the host tells of {sbdf}: {error}")]
    VfioEvents {
        /// The device.
        sbdf: Sbdf,
        /// What the kernel said.
        error: io::Error,
    },
    /// Its interrupts could not be set up.
    #[error("cannot set up interrupts of {sbdf}: {error}")]
    Interrupts {
        /// The device.
        sbdf: Sbdf,
        /// What VFIO or the hypervisor said.
        error: io::Error,
    },
    /// A BAR could not be shown.
    #[error(transparent)]
    BarMapping(#[from] BarMappingError),
    /// A BAR was placed where no bridge leads to the device.
    #[error("BAR {bar} of {sbdf} is at {range}, to which no bridge leads")]
    Beyond {
        /// The device.
        sbdf: Sbdf,
        /// The BAR.
        bar: u8,
        /// Where it is.
        range: AddressRange<Gpa>,
    },
    /// The clique capability does not fit.
    #[error("cannot tell the guest's driver the P2P clique of {sbdf}: {why}")]
    Clique {
        /// The device.
        sbdf: Sbdf,
        /// What is in the way.
        why: &'static str,
    },
}

/// Why a device could not be taken away. It is quiet, and [`detach`](super::AssignedDevice::detach)
/// can be called again.
#[derive(Debug, Error)]
pub enum DetachError {
    /// It is still visible somewhere.
    #[error(transparent)]
    BarMapping(#[from] BarMappingError),
    /// Its interrupts could not be turned off.
    #[error("cannot turn interrupts of {sbdf} off: {error}")]
    Interrupts {
        /// The device.
        sbdf: Sbdf,
        /// What VFIO or the hypervisor said.
        error: io::Error,
    },
    /// Its command register could not be written.
    #[error("cannot stop {sbdf}: {error}")]
    Config {
        /// The device.
        sbdf: Sbdf,
        /// What the kernel said.
        error: io::Error,
    },
}
