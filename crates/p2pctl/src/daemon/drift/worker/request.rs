//! Requests to the VMM of a device.

use std::time::Duration;

use hotplug::regroup::{DeviceFacts, PeerMappings, VmDevice, VmmError};

use super::super::super::guests::Guest;
use super::super::inbox::Outcome;
use super::super::response::Action;
use super::WorkerEnv;

/// How long a guest may take to release a device whose peers have changed.
const GUEST: Duration = Duration::from_secs(60);

/// Carries out an action for a device.
pub(super) fn perform(
    env: &dyn WorkerEnv,
    action: Action,
    device: &VmDevice,
    good: &DeviceFacts,
    patience: Duration,
) -> Result<Outcome, VmmError> {
    // Without peers there are no mappings, so the VMM need not be called.
    match action {
        Action::Revoke if !device.p2p => return Ok(Outcome::Closed(PeerMappings::Closed)),
        Action::Reopen if !device.p2p => return Ok(Outcome::Reopened),
        _ => {}
    }
    let vm = env.reach(patience)?;
    match action {
        Action::Revoke => vm.revoke(device).map(Outcome::Closed),
        Action::Unplug => {
            // The device must be removed even if a later daemon could not return it.
            if let Err(error) = env.withhold(device, good) {
                eprintln!(
                    "p2pctl: a restarted daemon would not return {} to {}: {error}",
                    device.id, device.vm
                );
            }
            vm.unplug(device, GUEST).map(|()| Outcome::LetGo)
        }
        Action::Plug => plug(&vm, device).map(Outcome::Plugged),
        // `Check` and `Nothing` are not requests.
        Action::Reopen | Action::Check | Action::Nothing => {
            vm.reopen(device).map(|()| Outcome::Reopened)
        }
    }
}

/// Returns a device with its peers, or without peers if that is refused now.
fn plug(vm: &Guest, device: &VmDevice) -> Result<&'static str, VmmError> {
    let alone = VmDevice {
        p2p: false,
        domain: None,
        ..device.clone()
    };
    match vm.plug(device) {
        Ok(()) => Ok("as before"),
        Err(VmmError::Refused { .. }) if device.p2p => vm.plug(&alone).map(|()| "without peers"),
        Err(error) => Err(error),
    }
}
