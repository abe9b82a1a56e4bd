//! What every [`Vmm`] must do, as a suite: one for the fake of unit tests and for the VMMs there are.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use iommu_group::Sbdf;

use super::vmm::{Assigned, Prospect, Vmm, VmmError, Windows};

/// Names of checks with what came of them.
pub type Results = Vec<(&'static str, Result<(), String>)>;

/// How long a willing guest may take to let go of a device; one under emulation is slow.
const WILLING: Duration = Duration::from_secs(120);

/// How long one is waited for that does not.
const UNWILLING: Duration = Duration::from_secs(3);

/// A virtual machine and a device that it has, which may take part in peer-to-peer DMA.
struct Rig<'a> {
    vmm: &'a dyn Vmm,
    device: &'a Assigned,
}

/// A name, and what is to be so.
type Check = (&'static str, fn(&Rig<'_>) -> Result<(), String>);

/// What one must do whose guest lets go of what it is asked for.
const WILLING_GUEST: [Check; 8] = [
    ("it says what it has", |rig| rig.has()),
    ("its devices are told by its name", |rig| {
        ensure(rig.device.vm == rig.vmm.name(), "another name")
    }),
    ("it could have what it has", |rig| {
        let devices = rig.devices()?;
        let prospect = Prospect {
            devices: &devices,
            routes: &[],
            holes: &BTreeMap::new(),
        };
        done(rig.vmm.could_have(&prospect))
    }),
    (
        "windows are taken away once and again, if they can be",
        |rig| {
            let first = done(rig.vmm.revoke(rig.device))?;
            let again = done(rig.vmm.revoke(rig.device))?;
            ensure(first == again, format!("{first:?}, then {again:?}"))?;
            rig.has()
        },
    ),
    ("what is plugged is plugged again without harm", |rig| {
        let before = rig.others()?;
        done(rig.vmm.plug(rig.device))?;
        rig.has()?;
        ensure(rig.others()? == before, "other devices than before")
    }),
    ("it is gone when unplug returns, and then as well", |rig| {
        done(rig.vmm.unplug(rig.device, WILLING))?;
        rig.lacks()?;
        done(rig.vmm.unplug(rig.device, WILLING))?;
        rig.lacks()
    }),
    ("what is not there has no windows to take away", |rig| {
        let windows = done(rig.vmm.revoke(rig.device))?;
        ensure(windows == Windows::Closed, format!("{windows:?}"))?;
        rig.lacks()
    }),
    ("it is back as it was", |rig| {
        let before = rig.others()?;
        done(rig.vmm.plug(rig.device))?;
        rig.has()?;
        ensure(rig.others()? == before, "other devices than before")
    }),
];

/// What one must do whose guest lets go of nothing.
const UNWILLING_GUEST: [Check; 2] = [
    ("a guest that does not let go is told of by name", |rig| {
        match rig.vmm.unplug(rig.device, UNWILLING) {
            Err(VmmError::Stalled { vm, id, deadline }) => {
                let said = (vm.as_str(), id.as_str(), deadline);
                let expected = (rig.vmm.name(), rig.device.id.as_str(), UNWILLING);
                ensure(said == expected, format!("{said:?}"))
            }
            other => Err(format!("{other:?}")),
        }?;
        rig.has()
    }),
    (
        "the request is withdrawn: it can stay, with its windows",
        |rig| {
            done(rig.vmm.plug(rig.device))?;
            rig.has()
        },
    ),
];

/// What holds of one that is not there any more.
const DEAD: [Check; 2] = [
    ("one that is gone has no devices", |rig| {
        gone(rig.vmm.devices().map(drop))
    }),
    ("one that is gone takes and gives none", |rig| {
        gone(rig.vmm.unplug(rig.device, UNWILLING))?;
        gone(rig.vmm.plug(rig.device))
    }),
];

impl Rig<'_> {
    fn devices(&self) -> Result<Vec<Assigned>, String> {
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

    /// The functions that it has besides.
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

/// A virtual machine whose guest lets go of what it is asked for, and a device that it has.
pub fn willing(vmm: &dyn Vmm, device: &Assigned) -> Results {
    Rig { vmm, device }.run(&WILLING_GUEST)
}

/// A virtual machine whose guest does not let go of this device.
pub fn unwilling(vmm: &dyn Vmm, device: &Assigned) -> Results {
    Rig { vmm, device }.run(&UNWILLING_GUEST)
}

/// A virtual machine that is not there any more, and a device that it had.
pub fn dead(vmm: &dyn Vmm, device: &Assigned) -> Results {
    Rig { vmm, device }.run(&DEAD)
}
