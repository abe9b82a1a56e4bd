//! Conformance suite for [`Vmm`], for the fake of unit tests and for real VMMs.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use iommu_group::Sbdf;

use super::vmm::{PeerMappings, ProposedDevices, VmDevice, Vmm, VmmError};

/// Names of checks and their results.
pub type Results = Vec<(&'static str, Result<(), String>)>;

/// Time limit for a guest that releases devices; an emulated guest is slow.
const WILLING: Duration = Duration::from_secs(120);

/// Time limit for a guest that does not release devices.
const UNWILLING: Duration = Duration::from_secs(3);

/// A VMM and one of its devices, which may take part in peer-to-peer DMA.
struct TestBackend<'a> {
    vmm: &'a dyn Vmm,
    device: &'a VmDevice,
}

/// Name and body of a check.
type Check = (&'static str, fn(&TestBackend<'_>) -> Result<(), String>);

/// Checks for a VMM whose guest releases devices on request.
const WILLING_GUEST: [Check; 8] = [
    ("it lists its devices", |backend| backend.has()),
    ("its devices carry its name", |backend| {
        ensure(backend.device.vm == backend.vmm.name(), "another name")
    }),
    ("it accepts the devices that it has", |backend| {
        let devices = backend.devices()?;
        let proposed = ProposedDevices {
            devices: &devices,
            routes: &[],
            holes: &BTreeMap::new(),
        };
        done(backend.vmm.could_have(&proposed))
    }),
    (
        "revoking peer mappings twice has the same result",
        |backend| {
            let first = done(backend.vmm.revoke(backend.device))?;
            let again = done(backend.vmm.revoke(backend.device))?;
            ensure(first == again, format!("{first:?}, then {again:?}"))?;
            backend.has()
        },
    ),
    ("plugging a plugged device changes nothing", |backend| {
        let before = backend.others()?;
        done(backend.vmm.plug(backend.device))?;
        backend.has()?;
        ensure(backend.others()? == before, "other devices than before")
    }),
    (
        "the device is gone when unplug returns, and a second unplug succeeds",
        |backend| {
            done(backend.vmm.unplug(backend.device, WILLING))?;
            backend.lacks()?;
            done(backend.vmm.unplug(backend.device, WILLING))?;
            backend.lacks()
        },
    ),
    ("an absent device has no peer mappings", |backend| {
        let windows = done(backend.vmm.revoke(backend.device))?;
        ensure(windows == PeerMappings::Closed, format!("{windows:?}"))?;
        backend.lacks()
    }),
    ("the device is plugged back unchanged", |backend| {
        let before = backend.others()?;
        done(backend.vmm.plug(backend.device))?;
        backend.has()?;
        ensure(backend.others()? == before, "other devices than before")
    }),
];

/// Checks for a VMM whose guest does not release devices.
const UNWILLING_GUEST: [Check; 2] = [
    (
        "a timeout names the VM, the device and the deadline",
        |backend| {
            match backend.vmm.unplug(backend.device, UNWILLING) {
                Err(VmmError::Stalled { vm, id, deadline }) => {
                    let said = (vm.as_str(), id.as_str(), deadline);
                    let expected = (backend.vmm.name(), backend.device.id.as_str(), UNWILLING);
                    ensure(said == expected, format!("{said:?}"))
                }
                other => Err(format!("{other:?}")),
            }?;
            backend.has()
        },
    ),
    (
        "the request is withdrawn: the device stays, with its peer mappings",
        |backend| {
            done(backend.vmm.plug(backend.device))?;
            backend.has()
        },
    ),
];

/// Checks for a VMM that has ended.
const DEAD: [Check; 2] = [
    ("a VMM that has ended has no devices", |backend| {
        gone(backend.vmm.devices().map(drop))
    }),
    (
        "a VMM that has ended plugs and unplugs nothing",
        |backend| {
            gone(backend.vmm.unplug(backend.device, UNWILLING))?;
            gone(backend.vmm.plug(backend.device))
        },
    ),
];

impl TestBackend<'_> {
    fn devices(&self) -> Result<Vec<VmDevice>, String> {
        self.vmm.devices().map_err(|error| error.to_string())
    }

    fn has(&self) -> Result<(), String> {
        let found = self.devices()?;
        ensure(found.contains(self.device), format!("it has {found:?}"))
    }

    fn lacks(&self) -> Result<(), String> {
        let mut found = self.devices()?.into_iter();
        let found = found.find(|found| found.function == self.device.function);
        ensure(found.is_none(), format!("it has {found:?}"))
    }

    /// The other functions that the VM has.
    fn others(&self) -> Result<BTreeSet<Sbdf>, String> {
        let all = self.devices()?.into_iter().map(|found| found.function);
        Ok(all.filter(|at| *at != self.device.function).collect())
    }

    fn run(&self, suite: &[Check]) -> Results {
        let checks = suite.iter();
        checks.map(|(name, check)| (*name, check(self))).collect()
    }
}

fn ensure(so: bool, what: impl Into<String>) -> Result<(), String> {
    if so { Ok(()) } else { Err(what.into()) }
}

fn done<T>(result: Result<T, VmmError>) -> Result<T, String> {
    result.map_err(|error| error.to_string())
}

fn gone(result: Result<(), VmmError>) -> Result<(), String> {
    match result {
        Err(VmmError::Gone { .. }) => Ok(()),
        other => Err(format!("{other:?}")),
    }
}

/// Runs the checks for a VMM whose guest releases devices, with one of its devices.
pub fn willing(vmm: &dyn Vmm, device: &VmDevice) -> Results {
    TestBackend { vmm, device }.run(&WILLING_GUEST)
}

/// Runs the checks for a VMM whose guest does not release this device.
pub fn unwilling(vmm: &dyn Vmm, device: &VmDevice) -> Results {
    TestBackend { vmm, device }.run(&UNWILLING_GUEST)
}

/// Runs the checks for a VMM that has ended, with one of its former devices.
pub fn dead(vmm: &dyn Vmm, device: &VmDevice) -> Results {
    TestBackend { vmm, device }.run(&DEAD)
}
