//! Doing an action.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use iommu_group::{AcsBits, Function, Groups, Sbdf};

use super::action::Action;
use super::baseline::{AcsWas, Baseline, Was};
use super::holdings::Holdings;
use super::host::HostError;
use super::machine::Machine;
use super::vmm::{Assigned, Vmm, VmmError};

/// How long a virtual machine that says that it has let go of a device may take to close it.
const RELEASE: Duration = Duration::from_secs(5);

/// How often that is looked at.
const POLL: Duration = Duration::from_millis(20);

/// An action that was not done.
#[derive(Debug, thiserror::Error)]
pub(super) enum ActionError {
    #[error(transparent)]
    Host(#[from] HostError),
    #[error(transparent)]
    Vmm(#[from] VmmError),
}

/// Who does actions.
pub(super) struct Performer<'a> {
    pub(super) machine: Machine<'a>,
    pub(super) vmms: &'a [&'a dyn Vmm],
    pub(super) baseline: &'a Baseline,
    /// How long a guest may take to let go of a device.
    pub(super) deadline: Duration,
}

impl Performer<'_> {
    pub(super) fn perform(&self, action: &Action) -> Result<(), ActionError> {
        let machine = self.machine;
        match action {
            Action::Unplug { devices } => {
                // No peer may aim at what is about to go.
                self.everyone(devices, |vmm, device| vmm.revoke(device).map(drop))?;
                let deadline = self.deadline;
                self.everyone(devices, |vmm, device| vmm.unplug(device, deadline))?;
            }
            Action::Plug { devices } => {
                let here: Vec<Result<Assigned, HostError>> =
                    devices.iter().map(|device| self.here(device)).collect();
                let there: Vec<Assigned> = here.iter().flatten().cloned().collect();
                for vmm in self.vmms {
                    let of_it = there.iter().filter(|device| device.vm == vmm.name());
                    vmm.expect(&of_it.cloned().collect::<Vec<_>>());
                }
                self.everyone(&there, |vmm, device| vmm.plug(device))?;
                here.into_iter().collect::<Result<Vec<_>, _>>()?;
            }
            Action::Autoprobe { on } => machine.set_autoprobe(*on)?,
            Action::Unbind { function } => self.unbind(self.at(*function)?)?,
            Action::Attributes { function, values } => {
                let at = self.at(*function)?;
                for (name, value) in values {
                    machine.set_attribute(at, name, value)?;
                }
            }
            Action::Acs { port, at, from, to } => {
                self.set_acs(*port, *at, *from, *to)?;
            }
            Action::Egress { port, at, to } => machine.set_egress(self.at(*port)?, *at, to)?,
            Action::Remove { function } => {
                match self.at(*function) {
                    // By itself, or in an earlier attempt.
                    Err(HostError::Gone { .. }) => {}
                    Err(error) => return Err(error.into()),
                    Ok(at) => self.remove(at)?,
                }
            }
            Action::Rescan { below } => machine.rescan_below(self.at(*below)?)?,
            Action::Bind {
                function,
                driver,
                then_override,
            } => machine.bind(self.at(*function)?, driver, then_override)?,
            Action::Check { groups, words } => self.check(groups, words)?,
        }
        Ok(())
    }

    /// Where a function is now. Nothing is done to one that is not on record, or not the one that is.
    fn at(&self, function: Sbdf) -> Result<Sbdf, HostError> {
        match self.baseline.functions.get(&function) {
            Some(was) => self.machine.locate(function, &was.place, was.identity),
            None => Err(HostError::Unrecorded { function }),
        }
    }

    /// A device by the address that it has now. Virtual functions have no place of their own and keep their addresses.
    fn here(&self, device: &Assigned) -> Result<Assigned, HostError> {
        let function = match self.at(device.function) {
            Err(HostError::Unrecorded { function }) if self.machine.is_virtual(function) => {
                function
            }
            found => found?,
        };
        // An exposure to one device is none to another in its place.
        let exposed = |function: &Sbdf| match self.at(*function) {
            Err(HostError::Unrecorded { function }) => Some(function),
            found => found.ok(),
        };
        Ok(Assigned {
            function,
            expose: device.expose.iter().filter_map(exposed).collect(),
            ..device.clone()
        })
    }

    /// Removes a function and what is below it, if all of that is on record and has no driver that uses it: the kernel
    /// would wait for the user of a device.
    fn remove(&self, at: Sbdf) -> Result<(), HostError> {
        let recorded = self.baseline.functions.iter();
        let recorded: BTreeMap<Sbdf, &Was> = recorded
            .filter_map(|(function, was)| Some((self.at(*function).ok()?, was)))
            .collect();
        for function in self.machine.below(at).into_iter().chain([at]) {
            let Some(was) = recorded.get(&function) else {
                let above = at;
                return Err(HostError::Stranger { function, above });
            };
            if !was.bridge {
                self.machine.ensure_unused(function)?;
            }
        }
        self.machine.remove(at)
    }

    fn acs(&self, port: Sbdf) -> Option<AcsWas> {
        self.baseline.functions.get(&port)?.acs
    }

    /// Asks for the same for all devices at once. A virtual machine that is gone has none.
    fn everyone(
        &self,
        devices: &[Assigned],
        ask: impl Fn(&dyn Vmm, &Assigned) -> Result<(), VmmError> + Sync,
    ) -> Result<(), VmmError> {
        let ask = &ask;
        let results: Vec<Result<(), VmmError>> = thread::scope(|scope| {
            let asking: Vec<_> = devices
                .iter()
                .map(|device| {
                    let vmm = self.vmms.iter().find(|vmm| vmm.name() == device.vm);
                    scope.spawn(move || match vmm {
                        Some(vmm) => ask(*vmm, device),
                        None => Err(VmmError::Unknown {
                            vm: device.vm.clone(),
                        }),
                    })
                })
                .collect();
            let join = |asked: thread::ScopedJoinHandle<'_, Result<(), VmmError>>| {
                asked
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            asking.into_iter().map(join).collect()
        });
        let failed =
            |result: &Result<(), VmmError>| !matches!(result, Ok(()) | Err(VmmError::Gone { .. }));
        results.into_iter().find(failed).unwrap_or(Ok(()))
    }

    /// Sees to it that no driver is bound. That a virtual machine that we know has others of its group open is no
    /// obstacle: it has let go of this one.
    fn unbind(&self, at: Sbdf) -> Result<(), HostError> {
        // A virtual machine that has let go of it may still be closing it.
        let patience = Instant::now() + self.deadline.min(RELEASE);
        loop {
            match self.machine.unbind(at) {
                Err(HostError::InUse { .. }) if self.is_shared(at) => {
                    return self.machine.unbind_now(at);
                }
                Err(HostError::InUse { .. }) if Instant::now() < patience => {
                    thread::sleep(POLL);
                }
                result => return result,
            }
        }
    }

    /// Whether a virtual machine that we know has another function of its group.
    fn is_shared(&self, at: Sbdf) -> bool {
        let sysfs = self.machine.host().sysfs();
        let mates = sysfs
            .group_of(at)
            .and_then(|group| sysfs.group_members(group))
            .unwrap_or_default();
        let assigned = Holdings::glance(self.vmms);
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
        let found = self.machine.acs_control(at, register)?;
        // It is there already if this was done half before.
        if found != to
            && let Some(expected) = from.filter(|from| *from != found)
        {
            return Err(HostError::Register {
                function: port,
                register: "ACS control",
                expected: format!("{expected:04x}"),
                found: format!("{found:04x}"),
            });
        }
        self.machine.set_acs_control(at, register, to)
    }

    fn check(
        &self,
        groups: &[Vec<Sbdf>],
        words: &BTreeMap<Sbdf, AcsBits>,
    ) -> Result<(), HostError> {
        let now = self.machine.scan()?;
        let then = self.baseline.renamed(&now);
        let old = |function: &Sbdf| then.get(function).copied().unwrap_or(*function);
        let partition = Groups::found(&now);
        for group in groups {
            // No plan knows of virtual functions that its end makes again: they are theirs whose physical one is.
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
                    let names = |group: &[Sbdf]| {
                        let names: Vec<String> = group.iter().map(Sbdf::to_string).collect();
                        names.join(" ")
                    };
                    return Err(HostError::Groups {
                        what: format!(
                            "{function} is with {}, not with {}",
                            names(&found),
                            names(group)
                        ),
                    });
                }
            }
        }
        for (port, expected) in words {
            let Some(acs) = self.acs(*port) else {
                continue;
            };
            let found = self.machine.acs_control(self.at(*port)?, acs.at)?;
            if found != *expected {
                return Err(HostError::Register {
                    function: *port,
                    register: "ACS control",
                    expected: format!("{expected:04x}"),
                    found: format!("{found:04x}"),
                });
            }
        }
        Ok(())
    }
}
