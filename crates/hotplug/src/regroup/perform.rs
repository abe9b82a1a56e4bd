//! Doing an action.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use iommu_group::{AcsBits, Function, Partition, Sbdf};

use super::action::Action;
use super::baseline::{AcsWas, Baseline};
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
                let here: Vec<Assigned> = devices.iter().map(|device| self.here(device)).collect();
                for vmm in self.vmms {
                    let of_it = here.iter().filter(|device| device.vm == vmm.name());
                    vmm.expect(&of_it.cloned().collect::<Vec<_>>());
                }
                self.everyone(&here, |vmm, device| vmm.plug(device))?;
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
                // It may have gone by itself, or in an earlier attempt.
                if let Ok(at) = self.at(*function) {
                    machine.remove(at)?;
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

    /// Where a function is now. Virtual ones have no place of their own and are not touched: they keep their addresses.
    fn at(&self, function: Sbdf) -> Result<Sbdf, HostError> {
        let found = match self.baseline.functions.get(&function) {
            Some(was) => self.machine.find(&was.place),
            None => Some(function),
        };
        found.ok_or(HostError::Gone { function })
    }

    /// A device by the address that it has now. One that is not there is left to its virtual machine to miss.
    fn here(&self, device: &Assigned) -> Assigned {
        let here = |function: Sbdf| self.at(function).unwrap_or(function);
        Assigned {
            function: here(device.function),
            expose: device.expose.iter().copied().map(here).collect(),
            ..device.clone()
        }
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
                .filter_map(|device| {
                    let vmm = self.vmms.iter().find(|vmm| vmm.name() == device.vm)?;
                    Some(scope.spawn(move || ask(*vmm, device)))
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
        let sysfs = self.machine.host().sysfs();
        let mates = sysfs
            .group_of(at)
            .and_then(|group| sysfs.group_members(group))
            .unwrap_or_default();
        let shared = self.vmms.iter().any(|vmm| {
            let devices = vmm.devices().unwrap_or_default();
            let others = devices.iter().filter(|device| device.function != at);
            others
                .map(|device| Some(device.function))
                .any(|other| mates.iter().any(|mate| mate.sbdf == other))
        });
        if shared {
            return self.machine.unbind_now(at);
        }
        // A virtual machine that has let go of it may still be closing it.
        let patience = Instant::now() + self.deadline.min(RELEASE);
        loop {
            match self.machine.unbind(at) {
                Err(HostError::InUse { .. }) if Instant::now() < patience => {
                    thread::sleep(POLL);
                }
                result => return result,
            }
        }
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
        let partition = Partition::found(&now);
        for group in groups {
            // No plan knows of virtual functions that its end makes again: they are theirs whose physical one is.
            let made_again = |at: &Sbdf| {
                let physical = now.get(*at).and_then(Function::physical_function);
                !group.contains(&old(at)) && physical.is_some_and(|one| group.contains(&old(&one)))
            };
            for function in group {
                let at = self.at(*function)?;
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
