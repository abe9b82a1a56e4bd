//! Policy rules, and the identity of a device that they match.

use serde::{Deserialize, Serialize};

use super::Location;

/// What a device may do in a P2P domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// May send requests to other devices and be their target.
    Peer,
    /// May only be a target. It must not send requests to other devices.
    TargetOnly,
    /// May only send requests: its BARs are not plain device memory.
    InitiatorOnly,
    /// Takes no part in peer-to-peer.
    Never,
}

/// The identity of a device that rules match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    /// Vendor ID.
    pub(crate) vendor: u16,
    /// Device ID.
    pub(crate) device: u16,
    /// Class, subclass and programming interface in bits 23:0.
    pub(crate) class: u32,
    /// Whether it is part of the root complex, without a link of its own.
    pub(crate) integrated: bool,
}

/// A rule of the policy file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) vendor: u16,
    /// `None` matches every device of the vendor.
    pub(super) device: Option<u16>,
    pub(super) role: Role,
    pub(super) why: String,
    pub(super) location: Location,
}

impl Rule {
    pub(super) fn fits(&self, identity: &Identity) -> bool {
        let device = self.device.is_none_or(|device| device == identity.device);
        self.vendor == identity.vendor && device
    }
}
