//! Why devices cannot be used as requested.

use std::fmt;
use std::io;

use guest_topology::{AssignError, EndpointError};
use iommu_group::assignment::Refusal;
use iommu_group::{AddressRange, Gpa, MemoryHole, Sbdf, SysfsError};
use thiserror::Error;

use crate::bus::PciError;
use crate::context::ContextError;
use crate::device::{AttachError, BarMappingError};
use crate::host_iommu::IommufdError;

/// The devices cannot be used as requested. Nothing is changed. `{}` writes the reason, `{:#}` adds hints.
#[derive(Debug, Error)]
pub enum DeviceSetError {
    /// The VM may not have the devices as requested.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// A path is not a PCI function of the host, or no IOMMU guards it.
    #[error(transparent)]
    Host(#[from] SysfsError),
    /// The set has this device or this tag.
    #[error("the VM already has {0}")]
    Present(String),
    /// No member has the tag.
    #[error("there is no device {0:?}")]
    Unknown(String),
    /// A function cannot be an endpoint of a guest.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// The requested kernel interface cannot be used.
    #[error("the devices cannot be assigned as configured")]
    Interface(#[source] IommufdError),
    /// KVM cannot be told about VFIO groups.
    #[error("cannot create the KVM-VFIO device (is KVM built with VFIO support?): {0}")]
    KvmVfio(kvm_ioctls::Error),
    /// No descriptors are left for the device.
    #[error(fmt = no_descriptors)]
    Descriptors {
        /// The device.
        sbdf: Sbdf,
        /// Why not.
        error: io::Error,
    },
    /// An IOMMU context could not be made or changed.
    #[error(transparent)]
    Context(#[from] ContextError),
    /// A device could not be opened or attached.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// The BARs of a device could not be mapped or unmapped.
    #[error(transparent)]
    BarMapping(#[from] BarMappingError),
    /// The guest's topology has no room for the devices.
    #[error(transparent)]
    NoRoom(#[from] AssignError),
    /// The guest has no bus at the address.
    #[error(transparent)]
    Bus(#[from] PciError),
    /// A window must be at its bus address, where the IOMMU translates nothing.
    #[error(
        "a peer's window must be at its bus address {window}, but the IOMMU cannot translate {gap}"
    )]
    FixedWindow {
        /// The window.
        window: AddressRange<Gpa>,
        /// The addresses that the IOMMU does not translate.
        gap: AddressRange<Gpa>,
    },
    /// The device's IOMMU does not translate guest memory.
    #[error(fmt = untranslated)]
    Untranslated {
        /// The device.
        sbdf: Sbdf,
        /// The memory.
        memory: AddressRange<Gpa>,
    },
    /// A BAR would be where the IOMMU translates nothing.
    #[error("BAR {bar} would be at {range}, which the IOMMU does not translate")]
    BarUntranslated {
        /// The BAR.
        bar: u8,
        /// Its addresses.
        range: AddressRange<Gpa>,
    },
    /// The device requires its peers at their bus addresses, and they are elsewhere.
    #[error(fmt = peers_elsewhere)]
    PeersElsewhere {
        /// The device.
        sbdf: Sbdf,
    },
    /// Requests of the device to a BAR of a peer would not reach the IOMMU.
    #[error(fmt = peer_hole)]
    PeerHole {
        /// The device.
        sbdf: Sbdf,
        /// The peer.
        peer: Sbdf,
        /// Its BAR.
        bar: u8,
        /// The hole that contains the BAR.
        hole: MemoryHole,
    },
    /// The events of devices cannot be waited for.
    #[error("cannot wait for events of devices: {0}")]
    Events(io::Error),
}

fn no_descriptors(sbdf: &Sbdf, error: &io::Error, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    write!(f, "no file descriptors are left for {sbdf}: {error}")?;
    let hint = "raise the hard limit of open files (RLIMIT_NOFILE) of the VMM";
    hinted(f, format_args!("{hint}"))
}

fn untranslated(
    sbdf: &Sbdf,
    memory: &AddressRange<Gpa>,
    f: &mut fmt::Formatter<'_>,
) -> fmt::Result {
    write!(
        f,
        "{sbdf} cannot reach guest memory at {memory}: its IOMMU does not translate these addresses"
    )?;
    let hint = "give it to the VM when it starts, so that memory is laid out for it";
    hinted(f, format_args!("{hint}"))
}

fn peers_elsewhere(sbdf: &Sbdf, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    write!(
        f,
        "the peers of {sbdf} are not at their bus addresses, which it requires"
    )?;
    hinted(
        f,
        format_args!("unplug them first, then add all of them again"),
    )
}

fn peer_hole(
    sbdf: &Sbdf,
    peer: &Sbdf,
    bar: &u8,
    hole: &MemoryHole,
    f: &mut fmt::Formatter<'_>,
) -> fmt::Result {
    write!(f, "{sbdf} cannot reach BAR {bar} of {peer} at {hole}")?;
    hinted(f, format_args!("unplug {peer} first, then add both again"))
}

/// Writes a hint, if it is wanted.
fn hinted(f: &mut fmt::Formatter<'_>, hint: fmt::Arguments<'_>) -> fmt::Result {
    match f.alternate() {
        true => write!(f, "\n       {hint}"),
        false => Ok(()),
    }
}

impl DeviceSetError {
    /// Whether the request is refused as it is, in contrast to an operation that was tried and failed.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Refused(_)
            | Self::Host(_)
            | Self::Present(_)
            | Self::Endpoint(_)
            | Self::Interface(_)
            | Self::Descriptors { .. }
            | Self::NoRoom(_)
            | Self::FixedWindow { .. }
            | Self::Untranslated { .. }
            | Self::BarUntranslated { .. }
            | Self::PeersElsewhere { .. }
            | Self::PeerHole { .. } => true,
            Self::Unknown(_)
            | Self::KvmVfio(_)
            | Self::Context(_)
            | Self::Attach(_)
            | Self::BarMapping(_)
            | Self::Bus(_)
            | Self::Events(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use iommu_group::assignment::Reason;

    use super::*;

    #[test]
    fn hints_are_written_on_request() {
        let sbdf: Sbdf = "0000:03:00.0".parse().unwrap();
        let twice = DeviceSetError::from(Refusal::from(Reason::Twice(sbdf)));
        let elsewhere = DeviceSetError::PeersElsewhere { sbdf };
        for error in [twice, elsewhere] {
            let (reason, all) = (format!("{error}"), format!("{error:#}"));
            assert!(
                reason.contains("0000:03:00.0") && !reason.contains('\n'),
                "{reason}"
            );
            assert!(all.starts_with(&format!("{reason}\n       ")), "{all}");
        }
    }
}
