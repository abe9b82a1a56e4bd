//! Who decides about the calls that give a VM devices, and sees those that take them.

use std::ops::RangeInclusive;

use iommu_group::Sbdf;
use serde_json::Value;

/// A call that is shown to a [`Gate`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GatedCall {
    /// `vm.create`: the body is the description of a VM.
    Create,
    /// `vm.add-device`: the body is the description of a device.
    AddDevice,
    /// `vm.remove-device`: the body says which. The VM stops to list it then, though its guest may still have it.
    RemoveDevice,
}

impl GatedCall {
    /// The call that a request makes; `None` for all that pass anyway.
    pub(super) fn of(method: &str, target: &str) -> Option<Self> {
        let path = target.split('?').next()?;
        match (method, path) {
            ("PUT", "/api/v1/vm.create") => Some(Self::Create),
            ("PUT", "/api/v1/vm.add-device") => Some(Self::AddDevice),
            ("PUT", "/api/v1/vm.remove-device") => Some(Self::RemoveDevice),
            _ => None,
        }
    }

    /// What stands above the reasons of a refusal.
    pub(super) fn attempt(self) -> &'static str {
        match self {
            Self::Create => "The VM could not be created",
            Self::AddDevice => "The device could not be added to the VM",
            Self::RemoveDevice => "The device could not be removed from the VM",
        }
    }
}

/// What becomes of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Passage {
    /// It passes as it is.
    AsIs,
    /// It passes with another body.
    Instead(Vec<u8>),
    /// It does not pass.
    Refused {
        /// Every reason, most fundamental first.
        reasons: Vec<String>,
    },
    /// Whether it may pass could not be found out.
    Failed {
        /// What went wrong, the root cause last.
        messages: Vec<String>,
    },
}

/// Decides about calls, of all connections of a [`Front`](super::Front).
pub trait Gate: Send + Sync {
    /// Decides about one call with this body. It is not asked again before the VMM has answered that call.
    fn pass(&self, call: GatedCall, body: &[u8]) -> Passage;

    /// A function of the VM left it without a call that was shown to the gate, and may come back.
    fn left(&self, _function: Sbdf) {}

    /// Where memory of a guest is or may come to be, guest-physical, by the description of its VM; `None` if that does not
    /// tell.
    fn memory(&self, config: &Value) -> Option<Vec<RangeInclusive<u64>>>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_calls_about_devices_are_gated() {
        for (method, target, call) in [
            ("PUT", "/api/v1/vm.create", Some(GatedCall::Create)),
            ("PUT", "/api/v1/vm.add-device", Some(GatedCall::AddDevice)),
            ("PUT", "/api/v1/vm.add-device?x", Some(GatedCall::AddDevice)),
            (
                "PUT",
                "/api/v1/vm.remove-device",
                Some(GatedCall::RemoveDevice),
            ),
            ("PUT", "/api/v1/vm.add-disk", None),
            ("GET", "/api/v1/vm.info", None),
        ] {
            assert_eq!(GatedCall::of(method, target), call, "{method} {target}");
        }
    }
}
