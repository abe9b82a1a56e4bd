//! Why a function is in its group.

use std::fmt;

use serde::Serialize;

use crate::Sbdf;
use crate::config::{AcsBits, Unreadable};

/// Why Linux does not regard a function as isolating.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum AcsDeficiency {
    /// The function has no ACS capability.
    NoAcs,
    /// The ACS capability exists, but these bits of the control register are clear.
    Off(AcsBits),
    /// The function is conventional PCI: devices on its bus can observe each other's requests.
    Conventional,
    /// The function is a bridge between PCI Express and PCI, which cannot have ACS.
    Bridge,
    /// The function is an event collector, which cannot have ACS.
    EventCollector,
    /// A quirk of Linux marks this device as not isolating.
    Quirk(&'static str),
    /// The registers could not be read; the result is uncertain.
    Unreadable(Unreadable),
}

impl fmt::Display for AcsDeficiency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoAcs => f.write_str("has no ACS"),
            Self::Off(bits) => write!(f, "has ACS {bits} switched off"),
            Self::Conventional => f.write_str("is conventional PCI, which has no ACS"),
            Self::Bridge => f.write_str("is a bridge to conventional PCI, which cannot have ACS"),
            Self::EventCollector => f.write_str("is an event collector, which cannot have ACS"),
            Self::Quirk(why) => write!(f, "does not isolate, by a quirk of Linux: {why}"),
            Self::Unreadable(hidden) => write!(f, "is not known: {hidden}"),
        }
    }
}

/// The reason for the group of a function: the deciding step of linux 7.2 drivers/iommu/iommu.c: `pci_device_group()`.
/// [`Display`](fmt::Display) formats it as a sentence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// No IOMMU translates for the function: it has no group.
    NoIommu,
    /// The function is not present.
    Gone,
    /// The function kept its earlier group. Linux computes groups only when a function is added.
    Kept,
    /// No function that it must be grouped with was present: it got a new group.
    New,
    /// Its requests have the requester ID of a bridge above it, so the IOMMU cannot distinguish them from other
    /// requests.
    RequesterId {
        /// The bridge.
        bridge: Sbdf,
    },
    /// A function provides its root bus, and its requests have the requester ID of that function.
    ProvidedBy {
        /// The function.
        provider: Sbdf,
    },
    /// A function above it does not isolate.
    NotIsolated {
        /// The lowest bridge above that has a group and whose path to the root does not isolate. The function joins its
        /// group.
        joins: Sbdf,
        /// The lowest function on that path that does not isolate.
        culprit: Sbdf,
        /// Why that function does not isolate.
        lack: AcsDeficiency,
    },
    /// The function and another function of its bus use each other's requester IDs.
    Alias {
        /// The function whose group is searched: the function itself, or the bridge whose requester ID it uses.
        of: Sbdf,
        /// The other function.
        with: Sbdf,
    },
    /// The function and another function of the same device may reach each other inside the device.
    SameDevice {
        /// The function whose group is searched: the function itself, or the bridge whose requester ID it uses.
        of: Sbdf,
        /// Why it does not isolate.
        lack: AcsDeficiency,
        /// The other function.
        with: Sbdf,
        /// Why the other function does not isolate.
        with_lack: AcsDeficiency,
    },
}

/// An unknown fact that a computed group depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Uncertainty {
    /// The type or the ACS capability of the function could not be read.
    Unreadable(Unreadable),
    /// The device stores its requester IDs in its own memory (Switchtec non-transparent bridges).
    AliasesInDeviceMemory,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoIommu => f.write_str("no group: no IOMMU translates its requests"),
            Self::Gone => f.write_str("not there"),
            Self::Kept => f.write_str("keeps the group that it has had since it was added"),
            Self::New => {
                f.write_str("a group of its own: all functions above and beside it isolate")
            }
            Self::RequesterId { bridge } => write!(
                f,
                "in the group of {bridge}, because its requests carry the requester ID of that bridge"
            ),
            Self::ProvidedBy { provider } => write!(
                f,
                "in the group of {provider}, because that function provides its bus and sends its requests"
            ),
            Self::NotIsolated {
                joins,
                culprit,
                lack,
            } if joins == culprit => {
                write!(f, "in the group of {joins}, because that port {lack}")
            }
            Self::NotIsolated {
                joins,
                culprit,
                lack,
            } => {
                write!(
                    f,
                    "in the group of {joins}, because {culprit} above it {lack}"
                )
            }
            Self::Alias { of, with } => {
                write!(
                    f,
                    "in the group of {with}, because {of} and it may use the same requester ID"
                )
            }
            Self::SameDevice {
                of,
                lack,
                with,
                with_lack,
            } => write!(
                f,
                "in the group of {with}, because they are functions of one device, {of} {lack} and {with} {with_lack}"
            ),
        }
    }
}
