//! Checks before the first write.

use std::collections::{BTreeMap, BTreeSet};

use iommu_group::assignment::{self, Exposed};
use iommu_group::policy::Consent;
use iommu_group::{DriverKind, Function, Groups, Kernel, RoutingModel, Sbdf, Topology};

use super::blocker::Blocker;
use super::forecast::Forecast;
use super::holdings::Holdings;
use super::host::HostError;
use super::peers::ReplugPlan;
use super::preview::Preview;
use super::sysfs_ops::SysfsOps;
use super::usage::{Mounts, Offers, VfioUsers, lockdown};
use super::vmm::{ProposedDevices, VmDevice, Vmm, VmmError};

/// Result of the checks.
pub(super) struct Preflight {
    pub(super) forecast: Forecast,
    /// Functions that are exposed now because of the affected devices, accepted or not.
    pub(super) exposed: BTreeSet<Sbdf>,
}

impl Preflight {
    /// Checks a plan. `accepted` are functions whose exposure is accepted for all plans.
    pub(super) fn of(
        ops: SysfsOps<'_>,
        preview: &Preview<'_>,
        vmms: &[&dyn Vmm],
        accepted: &BTreeSet<Sbdf>,
    ) -> Result<Self, HostError> {
        let (topology, plan) = (preview.topology, preview.plan);
        let mut blockers = preview.blockers.clone();
        blockers.extend(lockdown(ops.host()).map(|mode| Blocker::Lockdown { mode }));
        if Kernel::of(topology).parameters.acs_override.is_some() {
            blockers.push(Blocker::AcsOverride);
        }
        blockers.extend(odd_registers(preview));
        let relevant = functions(topology, preview.touched_groups());
        let Holdings { assigned, silent } =
            Holdings::query(vmms, |assigned| is_open(ops, topology, &relevant, assigned))?;
        blockers.extend(silent);
        let touched = functions(topology, preview.touched());
        blockers.extend(users(ops, topology, &touched, &assigned)?);
        let found = (&RoutingModel::found(topology), &Groups::found(topology));
        let exposed = exposed_in(found, &plan.unplug, &plan.options.expose, &assigned).into_iter();
        let exposed = exposed.map(|(_, exposed)| exposed.exposure.function);
        let exposed = exposed.collect();
        let mut expose = plan.options.expose.clone();
        if let Some(after) = &preview.after {
            blockers.extend(shared(&after.groups, &assigned));
            let then = (&after.routing, &after.groups);
            for (vm, exposed) in exposed_in(then, &plan.unplug, &plan.options.expose, &assigned) {
                let is_refused = exposed.is_refused();
                let exposure = exposed.exposure;
                if accepted.contains(&exposure.function) {
                    expose.insert(exposure.function);
                } else if is_refused && !preview.warns_of(exposure.function) {
                    blockers.push(Blocker::Exposed { vm, exposure });
                }
            }
        }
        let (unplug, staying): (Vec<_>, Vec<_>) = assigned
            .into_iter()
            .partition(|device| plan.unplug.contains(&device.function));
        let mut forecast = Forecast {
            blockers,
            // If the plan was made for another host, the form of the devices is unknown.
            plug: unplug.clone(),
            unplug,
            staying,
            last_away_ms: None,
        };
        if let Some(after) = &preview.after {
            let replug = ReplugPlan {
                assigned: &forecast.unplug,
                staying: &forecast.staying,
                goals: &plan.goals,
                groups: after.groups.groups(),
                expose: &expose,
            };
            forecast.plug = replug.devices();
            let refusals = refusals(vmms, preview, &after.routing, &forecast);
            forecast.blockers.extend(refusals);
        }
        Ok(Self { forecast, exposed })
    }
}

fn functions(topology: &Topology, at: BTreeSet<Sbdf>) -> Vec<&Function> {
    let found = at.into_iter().filter_map(|at| topology.get(at));
    found.collect()
}

/// The exposures that must be accepted by name and that involve devices that are unplugged and plugged back, with the
/// names of their virtual machines. `accepted` are functions whose exposure is accepted in addition to the devices' own
/// [`expose`](VmDevice::expose).
fn exposed_in(
    (routing, groups): (&RoutingModel<'_>, &Groups),
    unplug: &BTreeSet<Sbdf>,
    accepted: &BTreeSet<Sbdf>,
    assigned: &[VmDevice],
) -> Vec<(String, Exposed)> {
    let mut guests: BTreeMap<&str, Vec<&VmDevice>> = BTreeMap::new();
    for device in assigned {
        guests.entry(&device.vm).or_default().push(device);
    }
    let mut found = Vec::new();
    for (vm, devices) in guests {
        let functions: BTreeSet<Sbdf> = devices.iter().map(|device| device.function).collect();
        let back = functions.intersection(unplug).copied().collect();
        let named: BTreeSet<&Sbdf> = devices.iter().flat_map(|device| &device.expose).collect();
        let consent = |function| {
            let is_accepted = named.contains(&function) || accepted.contains(&function);
            is_accepted.then_some(Consent::Named)
        };
        let exposures = assignment::exposures(routing, groups, &functions, consent);
        let relevant = exposures.into_iter().filter(|Exposed { exposure, .. }| {
            exposure.needs_consent() && exposure.involves(&back)
        });
        found.extend(relevant.map(|exposed| (vm.to_owned(), exposed)));
    }
    found
}

/// Virtual machines that cannot take their devices back as planned, or whose memory the devices would not reach.
fn refusals(
    vmms: &[&dyn Vmm],
    preview: &Preview<'_>,
    routing: &RoutingModel<'_>,
    forecast: &Forecast,
) -> Vec<Blocker> {
    let refused = |vmm: &&dyn Vmm| {
        let of_it = |device: &&VmDevice| device.vm == vmm.name();
        let back = forecast.plug.iter().filter(of_it);
        back.clone().next()?;
        let holes = |device: &VmDevice| (device.function, routing.memory_holes(device.function));
        let devices = back.clone().chain(forecast.staying.iter().filter(of_it));
        let proposed = ProposedDevices {
            devices: &devices.cloned().collect::<Vec<_>>(),
            routes: &preview.plan.routes,
            holes: &back.map(holes).collect(),
        };
        match vmm.could_have(&proposed) {
            // A VMM that has ended takes no devices back.
            Ok(()) | Err(VmmError::Gone { .. }) => None,
            Err(VmmError::Memory {
                vm,
                function,
                memory,
                hole,
            }) => Some(Blocker::Memory {
                vm,
                function,
                memory,
                hole,
            }),
            Err(error) => Some(Blocker::Unwilling {
                error: error.to_string(),
            }),
        }
    };
    vmms.iter().filter_map(refused).collect()
}

/// Groups that would contain devices of several virtual machines. Only one process at a time can open a group (linux
/// 7.2 drivers/vfio/group.c: `vfio_group_fops_open()`), so all but one VM could not get their devices back.
fn shared(groups: &Groups, assigned: &[VmDevice]) -> Vec<Blocker> {
    let blocker = |group: &Vec<Sbdf>| {
        let here = assigned
            .iter()
            .filter(|device| group.contains(&device.function));
        let devices: BTreeMap<Sbdf, String> = here
            .map(|device| (device.function, device.vm.clone()))
            .collect();
        let machines: BTreeSet<&String> = devices.values().collect();
        (machines.len() > 1).then(|| Blocker::Shared {
            devices: devices.clone(),
        })
    };
    groups.groups().iter().filter_map(blocker).collect()
}

/// The ports to write whose ACS control register is not at the standard place.
fn odd_registers(preview: &Preview<'_>) -> Vec<Blocker> {
    let odd = |port: &Sbdf| {
        let acs = preview.topology.get(*port)?.acs().registers()?;
        acs.dword_layout
            .then_some(Blocker::OddRegister { port: *port })
    };
    preview.plan.written().iter().filter_map(odd).collect()
}

/// Users of functions, except the virtual machines that have `assigned`.
pub(super) fn users(
    ops: SysfsOps<'_>,
    topology: &Topology,
    functions: &[&Function],
    assigned: &[VmDevice],
) -> Result<Vec<Blocker>, HostError> {
    let (mounts, vfio) = (Mounts::read(ops.host()), VfioUsers::read(ops.host()));
    let mut blockers = Vec::new();
    for function in functions {
        let at = function.sbdf();
        let before = blockers.len();
        let offers = Offers::of(ops.host(), at);
        for block in &offers.blocks {
            let device = block.name.clone();
            if let Some(place) = mounts.at(block) {
                blockers.push(Blocker::Mounted {
                    function: at,
                    device: device.clone(),
                    at: place.to_owned(),
                });
            }
            if mounts.is_swap(block) {
                blockers.push(Blocker::Swap {
                    function: at,
                    device: device.clone(),
                });
            }
            blockers.extend(block.holders.iter().map(|holder| Blocker::Member {
                function: at,
                device: device.clone(),
                holder: holder.clone(),
            }));
        }
        blockers.extend(
            offers
                .interfaces
                .into_iter()
                .map(|interface| Blocker::InterfaceUp {
                    function: at,
                    interface,
                }),
        );
        let known = is_known(topology, function, assigned);
        if let Some(user) = vfio.of(ops.host(), at)?.filter(|_| !known) {
            blockers.push(Blocker::InUse {
                function: at,
                user: user.to_string(),
            });
        }
        // A specific use is more informative than the driver's name.
        if let Some(driver) = obstacle(function).filter(|_| blockers.len() == before) {
            blockers.push(Blocker::Driver {
                function: at,
                driver: driver.to_owned(),
            });
        }
    }
    Ok(blockers)
}

/// Whether a known virtual machine has the function open. At most one process has a group open, for all functions in
/// it, ports included (linux 7.2 drivers/vfio/group.c: `vfio_group_fops_open()`).
fn is_known(topology: &Topology, function: &Function, assigned: &[VmDevice]) -> bool {
    assigned.iter().any(|device| {
        let group = topology.get(device.function).and_then(Function::group);
        device.function == function.sbdf() || group.is_some() && group == function.group()
    })
}

/// Whether a process other than the virtual machines that have `assigned` has one of these functions open.
pub(super) fn is_open(
    ops: SysfsOps<'_>,
    topology: &Topology,
    functions: &[&Function],
    assigned: &[VmDevice],
) -> Result<bool, HostError> {
    let vfio = VfioUsers::read(ops.host());
    for function in functions {
        let open = vfio.of(ops.host(), function.sbdf())?.is_some();
        if open && !is_known(topology, function, assigned) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The driver that must be unbound before the function can be removed; none if it can be removed at once.
#[must_use]
pub fn obstacle(function: &Function) -> Option<&str> {
    function.driver().filter(|_| !is_idle(function))
}

/// Whether the driver of a function can stay bound: a port driver, or a driver that leaves the device idle.
fn is_idle(function: &Function) -> bool {
    match function.driver_kind() {
        DriverKind::Port => function.is_bridge(),
        DriverKind::Stub | DriverKind::Vfio => !function.is_bridge(),
        DriverKind::Unbound => true,
        DriverKind::Host => false,
    }
}

#[cfg(test)]
mod tests {
    use iommu_group::{AcsBits, GroupModel};

    use super::*;

    const SWITCH: &str = include_str!("../../../../resources/topologies/switch-four-nvme.json");

    #[test]
    fn exposures_are_listed_by_vm_with_their_acceptance() {
        let topology = Topology::from_fixture(SWITCH).unwrap();
        let mut model = GroupModel::as_found(&topology, &Kernel::of(&topology));
        // The port above the third device does not redirect requests.
        let port = "02:02.0".parse().unwrap();
        model.set_acs_control(port, AcsBits::SV | AcsBits::UF);
        let device = |vm: &str, function: &str, expose: &[&str]| VmDevice {
            vm: vm.to_owned(),
            id: function.to_owned(),
            function: function.parse().unwrap(),
            p2p: false,
            domain: None,
            expose: expose.iter().map(|at| at.parse().unwrap()).collect(),
            slot: None,
        };
        let mut assigned = vec![
            device("db", "06:00.0", &[]),
            device("web", "03:00.0", &["03:00.0"]),
        ];
        let unplug = assigned.iter().map(|device| device.function).collect();
        assigned.push(device("stays", "04:00.0", &[]));
        let host = (&RoutingModel::of(&model), &model.groups());
        let found = exposed_in(host, &unplug, &BTreeSet::new(), &assigned);
        let found: Vec<_> = found
            .iter()
            .map(|(vm, exposed)| {
                let function = exposed.exposure.function;
                (vm.as_str(), function.to_string(), exposed.consent.is_some())
            })
            .collect();
        assert_eq!(
            found,
            [
                ("db", "0000:06:00.0".to_owned(), false),
                ("web", "0000:03:00.0".to_owned(), true)
            ]
        );
    }
}
