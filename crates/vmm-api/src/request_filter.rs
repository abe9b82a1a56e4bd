//! Filter for the calls that add or remove devices.

use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;

use iommu_group::Sbdf;
use serde_json::Value;

/// A call that a [`RequestFilter`] decides about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FilteredCall {
    /// `vm.create`: the body is the configuration of a VM.
    Create,
    /// `vm.add-device`: the body is the configuration of a device, which may be a descriptor that comes with the call.
    AddDevice,
    /// `vm.add-vdpa`: the body is the configuration of a vDPA device.
    AddVdpa,
    /// `vm.boot`: the VM opens the devices of its configuration. There is no body.
    Boot,
    /// `vm.reboot`: the VM opens its devices again. There is no body.
    Reboot,
    /// `vm.remove-device`: the body names a device. The VM stops listing it, though its guest may still have it.
    RemoveDevice,
    /// `vm.restore`: the body names a directory with the configuration of a VM.
    Restore,
    /// `vm.receive-migration`: the configuration of the VM comes from another host.
    ReceiveMigration,
}

impl FilteredCall {
    /// Whether the call takes no body.
    #[must_use]
    pub fn has_no_body(self) -> bool {
        matches!(self, Self::Boot | Self::Reboot)
    }

    /// First message of a refusal.
    #[cfg(feature = "server")]
    pub(crate) fn failed_action(self) -> &'static str {
        match self {
            Self::Create => "The VM could not be created",
            Self::AddDevice => "The device could not be added to the VM",
            Self::AddVdpa => "The vDPA device could not be added to the VM",
            Self::Boot => "The VM could not be booted",
            Self::Reboot => "The VM could not be rebooted",
            Self::RemoveDevice => "The device could not be removed from the VM",
            Self::Restore => "The VM could not be restored",
            Self::ReceiveMigration => "The VM could not be migrated",
        }
    }
}

/// Decision about a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Forward the call with this body. The filter wrote the body, because another parser may interpret the original
    /// one differently.
    Forward(Vec<u8>),
    /// Refuse the call.
    Refused {
        /// Every reason, most fundamental first.
        reasons: Vec<String>,
    },
    /// Refuse the call: the body is invalid.
    Malformed(String),
    /// Refuse the call: the decision failed.
    Failed {
        /// The error and its causes, the root cause last.
        messages: Vec<String>,
    },
}

/// Decides about the calls of all clients of a VMM.
pub trait RequestFilter: Send + Sync {
    /// Decides about a call with this body and these descriptors. The next call is decided after the VMM has answered
    /// this one.
    fn decide(&self, call: FilteredCall, body: &[u8], descriptors: &[OwnedFd]) -> Decision;

    /// A function of the VM left it without a call that the filter saw, and may come back.
    fn function_left(&self, _function: Sbdf) {}

    /// The guest-physical ranges where the guest has or may get memory, from the configuration of its VM; `None` if the
    /// configuration does not determine them.
    fn memory(&self, config: &Value) -> Option<Vec<RangeInclusive<u64>>>;
}
