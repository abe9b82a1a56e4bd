//! The thread that gives the workers the devices that an earlier daemon took from VMs.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use hotplug::regroup::{Regroup, RegroupError, WithheldDevice};
use vmm_api::Client;

use super::Shared;

/// Timeout of a VMM's answer to a ping.
const PATIENCE: Duration = Duration::from_millis(500);

/// Interval between attempts to reach missing VMMs, and between checks whether the daemon ends.
const AGAIN: Duration = Duration::from_secs(1);
const REST: Duration = Duration::from_millis(50);

/// Runs until every VM is found or the daemon ends.
pub(super) fn run(shared: &Arc<Shared>) {
    let regroup = shared.runner.host().regroup();
    let mut left = regroup.withheld().unwrap_or_else(|error| {
        eprintln!("p2pctl: cannot read which devices must be returned: {error}");
        Vec::new()
    });
    while !left.is_empty() {
        left.retain(|device| match find(shared, &regroup, device) {
            Ok(found) => !found,
            Err(error) => {
                eprintln!("p2pctl: {}: {error}", device.device.id);
                false
            }
        });
        let mut waited = Duration::ZERO;
        while waited < AGAIN && !left.is_empty() {
            if shared.ended.load(Ordering::Acquire) {
                return;
            }
            thread::sleep(REST);
            waited += REST;
        }
    }
}

/// Whether the VM of a device was found: it is the one that had the device, or that one is gone.
fn find(
    shared: &Arc<Shared>,
    regroup: &Regroup<'_>,
    device: &WithheldDevice,
) -> Result<bool, RegroupError> {
    let vm = &device.device.vm;
    let sockets = shared.runner.host().guests.sockets();
    let Some(at) = sockets.into_iter().find(|at| at.name == *vm) else {
        return Ok(false);
    };
    let Ok(ping) = Client::new(&at.socket).with_patience(PATIENCE).ping() else {
        return Ok(false);
    };
    if ping.pid == device.vmm {
        shared.deliver(at, |inbox| inbox.withheld(device));
    } else {
        regroup.release(vm, &device.device.id)?;
    }
    Ok(true)
}
