//! A filter for the calls that give a VM devices, open them or take them away.

use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;

use iommu_group::Sbdf;
use serde_json::Value;

/// A call that is shown to a [`Gate`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GatedCall {
    /// `vm.create`: the body is the description of a VM.
    Create,
    /// `vm.add-device`: the body is the description of a device, which may be the descriptor that comes with it.
    AddDevice,
    /// `vm.add-vdpa`: the body is the description of a vDPA device.
    AddVdpa,
    /// `vm.boot`: the VM opens the devices that it was created with. There is no body.
    Boot,
    /// `vm.reboot`: the VM opens its devices again. There is no body.
    Reboot,
    /// `vm.remove-device`: the body names a device. The VM stops listing it then, though its guest may still have it.
    RemoveDevice,
    /// `vm.restore`: the body names a directory with the description of a VM.
    Restore,
    /// `vm.receive-migration`: the description of the VM comes from another host.
    ReceiveMigration,
}

impl GatedCall {
    /// Whether the call takes no body.
    #[must_use]
    pub fn has_no_body(self) -> bool {
        matches!(self, Self::Boot | Self::Reboot)
    }

    /// The first line of a refusal.
    #[cfg(feature = "server")]
    pub(crate) fn attempt(self) -> &'static str {
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

/// What becomes of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Passage {
    /// It passes with this body. The gate has written it: a body as it came may mean something else to another parser.
    Passes(Vec<u8>),
    /// It does not pass.
    Refused {
        /// Every reason, most fundamental first.
        reasons: Vec<String>,
    },
    /// It does not pass, as its body is not what the call takes.
    Malformed(String),
    /// Whether it may pass could not be found out.
    Failed {
        /// What went wrong, the root cause last.
        messages: Vec<String>,
    },
}

/// Decides about calls of all clients of a VMM.
pub trait Gate: Send + Sync {
    /// Decides about one call with this body and these descriptors. Not asked again before the VMM has answered the call.
    fn pass(&self, call: GatedCall, body: &[u8], descriptors: &[OwnedFd]) -> Passage;

    /// A function of the VM left it without a call that was shown to the gate, and may come back.
    fn left(&self, _function: Sbdf) {}

    /// Where memory of a guest is or may come to be, guest-physical, by the description of its VM; `None` if that does not
    /// tell.
    fn memory(&self, config: &Value) -> Option<Vec<RangeInclusive<u64>>>;
}
