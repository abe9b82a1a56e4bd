//! Events of an assigned device that the VMM did not cause.

use std::io;

use guest_topology::BarMove;
use iommu_group::Gpa;
use thiserror::Error;

use crate::dma::DmaError;

use super::bar_mappings::BarMappingError;

/// Event that a VMM receives about one of its devices.
#[derive(Debug, Error)]
pub enum DeviceEvent {
    /// A BAR could not be mapped at the address that the guest programmed, or could not be unmapped from its former
    /// address. The BAR is not visible until the guest moves it or the address becomes free.
    #[error(transparent)]
    BarMapping(BarMappingError),
    /// The guest moved a BAR away from the bus address at which a host switch routes requests to it. The IOMMU maps the
    /// BAR at its new address, but the switch sends requests to that address up to the root complex, or to another
    /// device below it that claims the address.
    #[error(
        "BAR {bar} went from {from} to {to}, off its bus address {bus_address}: peers no longer reach it \
         straight across the switch, only through the IOMMU, if the root complex routes between devices"
    )]
    RouteDegraded {
        /// Index of the BAR.
        bar: u8,
        /// Its former address.
        from: Gpa,
        /// Its new address.
        to: Gpa,
        /// The bus address that the switch routes to it.
        bus_address: Gpa,
    },
    /// The guest moved such a BAR back to its bus address.
    #[error(
        "BAR {bar} went from {from} back to its bus address {bus_address}: peers reach it straight across \
         the switch again"
    )]
    RouteRestored {
        /// Index of the BAR.
        bar: u8,
        /// Its former address.
        from: Gpa,
        /// Its new address.
        bus_address: Gpa,
    },
    /// The guest turned bus mastering on, but the BARs of its peers could not be mapped for the device. Bus mastering
    /// stays off.
    #[error("bus mastering stays off, because the BARs of its peers cannot be mapped: {0}")]
    Initiator(DmaError),
    /// The interrupts could not be set up as the guest programmed them.
    #[error("interrupts are not as the guest wants them: {0}")]
    Interrupts(io::Error),
    /// The guest's write to a register did not reach the device.
    #[error("write to configuration space at {offset:#x}: {error}")]
    Config {
        /// Offset in bytes.
        offset: u16,
        /// The kernel's error.
        error: io::Error,
    },
    /// The guest reset the function.
    #[error("the guest reset it")]
    Reset,
    /// The guest tried to reset the function and the reset failed. Bus mastering and memory decode are off.
    #[error("the guest's reset failed: {0}")]
    ResetFailed(io::Error),
    /// The hardware reported an uncorrectable error. The device is stopped.
    #[error("the hardware reported an uncorrectable error; the device is stopped")]
    Error,
    /// The host requests the device back: the VMM should unplug it with the guest's consent.
    #[error("the host wants the device back")]
    Requested,
    /// The device does not respond any more. It is stopped.
    #[error("the device has vanished")]
    Vanished,
}

impl From<BarMove> for DeviceEvent {
    fn from(moved: BarMove) -> Self {
        let BarMove {
            bar,
            from,
            to,
            bus_address,
        } = moved;
        if moved.is_home() {
            return Self::RouteRestored {
                bar,
                from,
                bus_address,
            };
        }
        Self::RouteDegraded {
            bar,
            from,
            to,
            bus_address,
        }
    }
}
