//! What happens to an assigned device without the VMM's doing.

use std::io;

use guest_topology::BarMove;
use iommu_group::Gpa;
use thiserror::Error;

use crate::dma::DmaError;

use super::bar_mappings::BarMappingError;

/// Something that a VMM is told of one of its devices.
#[derive(Debug, Error)]
pub enum DeviceEvent {
    /// The guest put a BAR where it cannot be, or it could not be taken from where it was. The BAR is
    /// visible to nobody until the guest puts it elsewhere or the place becomes free.
    #[error(transparent)]
    BarMapping(BarMappingError),
    /// The guest moved a BAR off the bus address at which a switch of the host carries requests to it. The
    /// IOMMU has it at the new place, but what is sent there goes up to the root complex, if no other
    /// device below the switch takes it for its own.
    #[error(
        "BAR {bar} went from {from} to {to}, off its bus address {bus_address}: peers no longer reach it \
         straight across the switch, only through the IOMMU, if the root complex routes between devices"
    )]
    RouteDegraded {
        /// Its BAR.
        bar: u8,
        /// Where it was.
        from: Gpa,
        /// Where it is.
        to: Gpa,
        /// Where it should be.
        bus_address: Gpa,
    },
    /// The guest moved such a BAR back.
    #[error(
        "BAR {bar} went from {from} back to its bus address {bus_address}: peers reach it straight across \
         the switch again"
    )]
    RouteRestored {
        /// Its BAR.
        bar: u8,
        /// Where it was.
        from: Gpa,
        /// Where it is.
        bus_address: Gpa,
    },
    /// The guest turned bus mastering on, and the BARs of its peers could not be mapped for it. Bus mastering stays off.
    #[error("bus mastering stays off, because the BARs of its peers cannot be mapped: {0}")]
    Initiator(DmaError),
    /// The guest's interrupts could not be set up as it wants them.
    #[error("interrupts are not as the guest wants them: {0}")]
    Interrupts(io::Error),
    /// The guest's write to a register did not reach the device.
    #[error("write to configuration space at {offset:#x}: {error}")]
    Config {
        /// Where, in bytes.
        offset: u16,
        /// What the kernel said.
        error: io::Error,
    },
    /// The guest reset the function.
    #[error("the guest reset it")]
    Reset,
    /// The guest wanted to reset the function; it is quiet, but as it was.
    #[error("the guest's reset failed: {0}")]
    ResetFailed(io::Error),
    /// The hardware reported an uncorrectable error. The device is stopped.
    #[error("the hardware reported an uncorrectable error; the device is stopped")]
    Error,
    /// The host wants the device back: soft-unplug it.
    #[error("the host wants the device back")]
    Requested,
    /// The device does not answer any more. It is stopped.
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
