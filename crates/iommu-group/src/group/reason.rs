//! Why a function is in the group that it is in.

use std::fmt;

use serde::Serialize;

use super::AcsDeficiency;
use crate::Sbdf;

/// Why a function is in the group that it is in: the step of linux 7.2 drivers/iommu/iommu.c: `pci_device_group()`
/// that decided. [`Display`](fmt::Display) says it in words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// No IOMMU serves it: it has no group.
    NoIommu,
    /// It is not there.
    Gone,
    /// It had this group before and stayed. Groups are only computed when a function is added.
    Kept,
    /// Nothing that it must be grouped with was there before it: it got a new group.
    New,
    /// Its requests bear the id of a bridge above it, so the IOMMU cannot tell them apart.
    RequesterId {
        /// The bridge.
        bridge: Sbdf,
    },
    /// Its root bus is provided by a function, whose requester id its requests bear.
    ProvidedBy {
        /// The function.
        provider: Sbdf,
    },
    /// Some function above it lets peers reach each other.
    NotIsolated {
        /// The lowest bridge above that has a group and is not isolated up to the root: whose group it is.
        joins: Sbdf,
        /// The lowest function from there up that Linux does not trust.
        culprit: Sbdf,
        /// Why not.
        lack: AcsDeficiency,
    },
    /// It and another function of its bus send requests with each other's ids.
    Alias {
        /// The function whose group is searched: itself, or the bridge that stands for it.
        of: Sbdf,
        /// The other one.
        with: Sbdf,
    },
    /// It and another function of the same device may reach each other inside the device.
    SameDevice {
        /// The function whose group is searched: itself, or the bridge that stands for it.
        of: Sbdf,
        /// Why Linux does not trust it.
        lack: AcsDeficiency,
        /// The other one.
        with: Sbdf,
        /// Why Linux does not trust that.
        with_lack: AcsDeficiency,
    },
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoIommu => f.write_str("no group: no IOMMU serves it"),
            Self::Gone => f.write_str("not there"),
            Self::Kept => f.write_str("keeps the group that it has had since it was added"),
            Self::New => {
                f.write_str("a group of its own: everything above and beside it keeps peers apart")
            }
            Self::RequesterId { bridge } => write!(
                f,
                "in the group of {bridge}, because its requests bear the requester id of that bridge"
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
                    "in the group of {with}, because {of} and it may send requests with one id"
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
