//! Executes actions.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use iommu_group::{AcsBits, Function, Groups, Sbdf};

use super::action::{Action, list};
use super::holdings::{Holdings, in_parallel};
use super::host::HostError;
use super::snapshot::{AcsState, FunctionState, Snapshot};
use super::sysfs_ops::SysfsOps;
use super::vmm::{VmDevice, Vmm, VmmError};

/// Time that a VMM may take to close a device after it reported the release.
const RELEASE: Duration = Duration::from_secs(5);

/// Interval of checks for that.
const POLL: Duration = Duration::from_millis(20);

/// Error of an action.
#[derive(Debug, thiserror::Error)]
pub(super) enum ActionError {
    #[error(transparent)]
    Host(#[from] HostError),
    #[error(transparent)]
    Vmm(#[from] VmmError),
}

/// Executes actions.
pub(super) struct Executor<'a> {
    pub(super) ops: SysfsOps<'a>,
    pub(super) vmms: &'a [&'a dyn Vmm],
    pub(super) snapshot: &'a Snapshot,
    /// Time that a guest may take to release a device.
    pub(super) deadline: Duration,
}

impl Executor<'_> {
    pub(super) fn execute(&self, action: &Action) -> Result<(), ActionError> {
        let ops = self.ops;
        match action {
            Action::Unplug { devices } => {
                // First close the mappings through which peers could reach the devices.
                self.for_each_device(devices, |vmm, device| vmm.revoke(device).map(drop))?;
                let deadline = self.deadline;
                self.for_each_device(devices, |vmm, device| vmm.unplug(device, deadline))?;
            }
            Action::Plug { devices } => {
                let here: Vec<Result<VmDevice, HostError>> =
                    devices.iter().map(|device| self.here(device)).collect();
                let there: Vec<VmDevice> = here.iter().flatten().cloned().collect();
                for vmm in self.vmms {
                    let of_it = there.iter().filter(|device| device.vm == vmm.name());
                    vmm.expect(&of_it.cloned().collect::<Vec<_>>());
                }
                self.for_each_device(&there, |vmm, device| vmm.plug(device))?;
                here.into_iter().collect::<Result<Vec<_>, _>>()?;
            }
            Action::Autoprobe { on } => ops.set_autoprobe(*on)?,
            Action::Unbind { function } => self.unbind(self.at(*function)?)?,
            Action::Attributes { function, values } => {
                let at = self.at(*function)?;
                for (name, value) in values {
                    ops.set_attribute(at, name, value)?;
                }
            }
            Action::Acs { port, at, from, to } => {
                self.set_acs(*port, *at, *from, *to)?;
            }
            Action::Egress { port, at, to } => ops.set_egress(self.at(*port)?, *at, to)?,
            Action::Remove { function } => {
                match self.at(*function) {
                    // It was removed by an earlier attempt, or by itself.
                    Err(HostError::Gone { .. }) => {}
                    Err(error) => return Err(error.into()),
                    Ok(at) => self.remove(at)?,
                }
            }
            Action::Rescan { below } => ops.rescan_below(self.at(*below)?)?,
            Action::Bind {
                function,
                driver,
                then_override,
            } => ops.bind(self.at(*function)?, driver, then_override)?,
            Action::Check { groups, words } => self.check(groups, words)?,
        }
        Ok(())
    }

    /// The current address of a function. A function without a record, or a different device in its place, is an error.
    fn at(&self, function: Sbdf) -> Result<Sbdf, HostError> {
        match self.snapshot.functions.get(&function) {
            Some(was) => self.ops.locate(function, &was.topology_path, was.identity),
            None => Err(HostError::Unrecorded { function }),
        }
    }

    /// A device with its current address. Virtual functions have no topology path; their addresses are assumed
    /// unchanged.
    fn here(&self, device: &VmDevice) -> Result<VmDevice, HostError> {
        let function = match self.at(device.function) {
            Err(HostError::Unrecorded { function }) if self.ops.is_virtual(function) => function,
            found => found?,
        };
        // An accepted exposure of a device does not extend to a different device in its place.
        let exposed = |function: &Sbdf| match self.at(*function) {
            Err(HostError::Unrecorded { function }) => Some(function),
            found => found.ok(),
        };
        Ok(VmDevice {
            function,
            expose: device.expose.iter().filter_map(exposed).collect(),
            ..device.clone()
        })
    }

    /// Removes a function and everything below it, if all of these functions are in the journal and unused: the kernel
    /// would wait for the process that uses a device.
    fn remove(&self, at: Sbdf) -> Result<(), HostError> {
        let recorded = self.snapshot.functions.iter();
        let recorded: BTreeMap<Sbdf, &FunctionState> = recorded
            .filter_map(|(function, was)| Some((self.at(*function).ok()?, was)))
            .collect();
        for function in self.ops.below(at).into_iter().chain([at]) {
            let Some(was) = recorded.get(&function) else {
                let above = at;
                return Err(HostError::Stranger { function, above });
            };
            if !was.bridge {
                self.ops.ensure_unused(function)?;
            }
        }
        self.ops.remove(at)
    }

    fn acs(&self, port: Sbdf) -> Option<AcsState> {
        self.snapshot.functions.get(&port)?.acs
    }

    /// Makes a call for all devices in parallel. A VMM that has ended has none.
    fn for_each_device(
        &self,
        devices: &[VmDevice],
        call: impl Fn(&dyn Vmm, &VmDevice) -> Result<(), VmmError> + Sync,
    ) -> Result<(), VmmError> {
        let vmms = self.vmms;
        let results = in_parallel(devices, |device| {
            match vmms.iter().find(|vmm| vmm.name() == device.vm) {
                Some(vmm) => call(*vmm, device),
                None => Err(VmmError::Unknown {
                    vm: device.vm.clone(),
                }),
            }
        });
        let failed =
            |result: &Result<(), VmmError>| !matches!(result, Ok(()) | Err(VmmError::Gone { .. }));
        results.into_iter().find(failed).unwrap_or(Ok(()))
    }

    /// Unbinds a function. It waits for processes that have the group open, except for known VMMs that have other
    /// functions of the group: those have released this one.
    fn unbind(&self, at: Sbdf) -> Result<(), HostError> {
        // A VMM may still be closing a function that it has released.
        let patience = Instant::now() + self.deadline.min(RELEASE);
        loop {
            match self.ops.unbind(at) {
                Err(HostError::InUse { .. }) if self.is_shared(at) => {
                    return self.ops.unbind_now(at);
                }
                Err(HostError::InUse { .. }) if Instant::now() < patience => {
                    thread::sleep(POLL);
                }
                result => return result,
            }
        }
    }

    /// Whether a known VMM has another function of the group.
    fn is_shared(&self, at: Sbdf) -> bool {
        let sysfs = self.ops.host().sysfs();
        let mates = sysfs
            .group_of(at)
            .and_then(|group| sysfs.group_members(group))
            .unwrap_or_default();
        let assigned = Holdings::query_briefly(self.vmms);
        let mut others = assigned.iter().filter(|device| device.function != at);
        others.any(|other| mates.iter().any(|mate| mate.sbdf == Some(other.function)))
    }

    fn set_acs(
        &self,
        port: Sbdf,
        register: u16,
        from: Option<AcsBits>,
        to: AcsBits,
    ) -> Result<(), HostError> {
        let at = self.at(port)?;
        let found = self.ops.acs_control(at, register)?;
        // An earlier attempt may have written the register already.
        if found != to
            && let Some(expected) = from.filter(|from| *from != found)
        {
            return Err(HostError::acs_control(port, expected, found));
        }
        self.ops.set_acs_control(at, register, to)
    }

    fn check(
        &self,
        groups: &[Vec<Sbdf>],
        words: &BTreeMap<Sbdf, AcsBits>,
    ) -> Result<(), HostError> {
        let now = self.ops.scan()?;
        let then = self.snapshot.renamed(&now);
        let old = |function: &Sbdf| then.get(function).copied().unwrap_or(*function);
        let partition = Groups::found(&now);
        for group in groups {
            // Plans do not cover virtual functions that are created again at the end: they belong to the owner of the
            // physical function.
            let made_again = |at: &Sbdf| {
                let physical = now.get(*at).and_then(Function::physical_function);
                !group.contains(&old(at)) && physical.is_some_and(|one| group.contains(&old(&one)))
            };
            for function in group {
                let at = match self.at(*function) {
                    Err(HostError::Unrecorded { function }) => function,
                    found => found?,
                };
                let found = partition.group_of(at).unwrap_or_default().iter();
                let found = found.filter(|at| !made_again(at));
                let mut found: Vec<Sbdf> = found.map(old).collect();
                found.sort_unstable();
                if found != *group {
                    return Err(HostError::Groups {
                        what: format!(
                            "the group of {function} is {}, not {}",
                            list(&found),
                            list(group)
                        ),
                    });
                }
            }
        }
        for (port, expected) in words {
            let Some(acs) = self.acs(*port) else {
                continue;
            };
            let found = self.ops.acs_control(self.at(*port)?, acs.at)?;
            if found != *expected {
                return Err(HostError::acs_control(*port, *expected, found));
            }
        }
        Ok(())
    }
}
