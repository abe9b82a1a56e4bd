//! What is looked at before the first write.

use std::collections::{BTreeMap, BTreeSet};

use iommu_group::{
    DriverKind, Function, GroupModel, Groups, Kernel, Plan, RoutingModel, Sbdf, Step, Topology,
    Warning,
};

use super::blocker::Blocker;
use super::exposure::{GuestExposure, exposures};
use super::forecast::fits;
use super::holdings::Holdings;
use super::host::HostError;
use super::machine::Machine;
use super::usage::{Mounts, Offers, VfioUsers, lockdown};
use super::vmm::{Assigned, Prospect, Vmm, VmmError};

/// What speaks against carrying out a plan, and which of its devices virtual machines have.
pub(super) struct Preflight {
    pub(super) blockers: Vec<Blocker>,
    pub(super) assigned: Vec<Assigned>,
    /// Their other devices.
    pub(super) staying: Vec<Assigned>,
    /// Functions that are exposed because of their devices now, accepted or not.
    pub(super) exposed: BTreeSet<Sbdf>,
    /// Functions of which it was accepted that they will be.
    pub(super) expose: BTreeSet<Sbdf>,
}

impl Preflight {
    pub(super) fn of(
        machine: Machine<'_>,
        topology: &Topology,
        plan: &Plan,
        vmms: &[&dyn Vmm],
        accepted: &BTreeSet<Sbdf>,
    ) -> Result<Self, HostError> {
        let kernel = Kernel::of(topology);
        let mut blockers = against_plan(topology, &kernel, plan);
        let fits = fits(&blockers);
        blockers.extend(lockdown(machine.host()).map(|mode| Blocker::Lockdown { mode }));
        if kernel.parameters.acs_override.is_some() {
            blockers.push(Blocker::AcsOverride);
        }
        blockers.extend(odd_registers(topology, plan));
        let touched = touched(topology, plan);
        let mates = mates(topology, &kernel, plan, &touched, fits);
        let Holdings { assigned, silent } = Holdings::ask(vmms, |assigned| {
            is_open(machine, topology, &mates, assigned)
        })?;
        blockers.extend(silent);
        blockers.extend(users(machine, topology, &touched, &assigned)?);
        let mut expose = plan.options.expose.clone();
        if fits {
            let model = after(topology, plan);
            blockers.extend(shared(&model, &assigned));
            for exposed in exposed_in(&RoutingModel::of(&model), &model.groups(), plan, &assigned) {
                let GuestExposure { vm, exposed } = exposed;
                let function = exposed.exposure.function;
                if accepted.contains(&function) {
                    expose.insert(function);
                } else if exposed.is_refused() && !is_objected(plan, function) {
                    blockers.push(Blocker::Exposed {
                        vm,
                        exposure: exposed.exposure,
                    });
                }
            }
        }
        let (routing, groups) = (RoutingModel::found(topology), Groups::found(topology));
        let exposed = exposed_in(&routing, &groups, plan, &assigned).into_iter();
        let exposed = exposed
            .map(|guest| guest.exposed.exposure.function)
            .collect();
        let (assigned, staying): (Vec<_>, Vec<_>) = assigned
            .into_iter()
            .partition(|device| plan.unplug.contains(&device.function));
        Ok(Self {
            blockers,
            assigned,
            staying,
            exposed,
            expose,
        })
    }
}

/// The exposures in which devices take part that virtual machines lose and get back.
fn exposed_in(
    routing: &RoutingModel<'_>,
    groups: &Groups,
    plan: &Plan,
    assigned: &[Assigned],
) -> Vec<GuestExposure> {
    let mut found = exposures(routing, groups, assigned, &plan.options.expose);
    found.retain(|guest| {
        let of_it = assigned.iter().filter(|device| device.vm == guest.vm);
        let back = of_it.map(|device| device.function);
        let back = back.filter(|function| plan.unplug.contains(function));
        guest.exposed.exposure.involves(&back.collect())
    });
    found
}

/// Whether the plan itself says that a function becomes reachable.
fn is_objected(plan: &Plan, function: Sbdf) -> bool {
    plan.objections.iter().any(|objection| match objection {
        Warning::Exposes(exposure) => exposure.function == function,
        _ => false,
    })
}

/// Virtual machines that could not have what would come back to them, or whose memory that would not reach.
pub(super) fn unwilling(
    vmms: &[&dyn Vmm],
    topology: &Topology,
    plan: &Plan,
    homecoming: &[Assigned],
    staying: &[Assigned],
) -> Vec<Blocker> {
    let routing = RoutingModel::of(&after(topology, plan));
    let refused = |vmm: &&dyn Vmm| {
        let of_it = |device: &&Assigned| device.vm == vmm.name();
        if !homecoming.iter().any(|device| of_it(&device)) {
            return None;
        }
        let back = homecoming.iter().filter(of_it);
        let holes = |device: &Assigned| (device.function, routing.memory_holes(device.function));
        let devices = back.clone().chain(staying.iter().filter(of_it));
        let prospect = Prospect {
            devices: &devices.cloned().collect::<Vec<_>>(),
            routes: &plan.routes,
            holes: &back.map(holes).collect(),
        };
        match vmm.could_have(&prospect) {
            // One that is gone has no devices, and wants none back.
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

/// What speaks against the plan itself. The same goals must give the same plan: all that it depends on is as it was.
fn against_plan(topology: &Topology, kernel: &Kernel, plan: &Plan) -> Vec<Blocker> {
    match Plan::make(topology, kernel, &plan.goals, &plan.options) {
        Err(refusal) => refusal
            .reasons
            .iter()
            .map(|reason| Blocker::Impossible {
                reason: reason.to_string(),
            })
            .collect(),
        Ok(now) if now != *plan => vec![Blocker::Stale],
        Ok(now) => now
            .objections
            .into_iter()
            .map(|objection| Blocker::Objection { objection })
            .collect(),
    }
}

/// The host as a plan leaves it.
pub(super) fn after<'t>(topology: &'t Topology, plan: &Plan) -> GroupModel<'t> {
    let mut model = GroupModel::as_found(topology, &Kernel::of(topology));
    plan.steps.iter().for_each(|step| step.apply(&mut model));
    model
}

/// Groups that would have devices of several virtual machines. One process at a time has a group open
/// (linux 7.2 drivers/vfio/group.c: `vfio_group_fops_open()`), so that all but one could not get theirs back.
fn shared(model: &GroupModel<'_>, assigned: &[Assigned]) -> Vec<Blocker> {
    let partition = model.groups();
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
    partition.groups().iter().filter_map(blocker).collect()
}

fn odd_registers(topology: &Topology, plan: &Plan) -> Vec<Blocker> {
    let ports: BTreeSet<Sbdf> = plan
        .steps
        .iter()
        .filter_map(|step| match step {
            Step::SetAcs { port, .. } | Step::SetEgress { port, .. } => Some(*port),
            _ => None,
        })
        .collect();
    let odd = |port: &Sbdf| {
        let acs = topology.get(*port).and_then(|f| f.acs().registers());
        acs.is_some_and(|acs| acs.dword_layout)
    };
    ports
        .into_iter()
        .filter(odd)
        .map(|port| Blocker::OddRegister { port })
        .collect()
}

/// Who uses functions, apart from the virtual machines that have `assigned`.
pub(super) fn users(
    machine: Machine<'_>,
    topology: &Topology,
    functions: &[&Function],
    assigned: &[Assigned],
) -> Result<Vec<Blocker>, HostError> {
    let (mounts, vfio) = (
        Mounts::read(machine.host()),
        VfioUsers::read(machine.host()),
    );
    let mut blockers = Vec::new();
    for function in functions {
        let at = function.sbdf();
        let before = blockers.len();
        let offers = Offers::of(machine.host(), at);
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
        if let Some(user) = vfio.of(machine.host(), at)?.filter(|_| !known) {
            blockers.push(Blocker::InUse {
                function: at,
                user: user.to_string(),
            });
        }
        // What the driver is used for says more than that there is one.
        if let Some(driver) = obstacle(function).filter(|_| blockers.len() == before) {
            blockers.push(Blocker::Driver {
                function: at,
                driver: driver.to_owned(),
            });
        }
    }
    Ok(blockers)
}

/// Whether it is known who has a function open. One process at most has a group open, for all that are in it, the ports
/// above included (linux 7.2 drivers/vfio/group.c: `vfio_group_fops_open()`).
fn is_known(topology: &Topology, function: &Function, assigned: &[Assigned]) -> bool {
    assigned.iter().any(|device| {
        let group = topology.get(device.function).and_then(Function::group);
        device.function == function.sbdf() || group.is_some() && group == function.group()
    })
}

/// Whether somebody has one of these functions open, besides the virtual machines that have `assigned`.
pub(super) fn is_open(
    machine: Machine<'_>,
    topology: &Topology,
    functions: &[&Function],
    assigned: &[Assigned],
) -> Result<bool, HostError> {
    let vfio = VfioUsers::read(machine.host());
    for function in functions {
        let open = vfio.of(machine.host(), function.sbdf())?.is_some();
        if open && !is_known(topology, function, assigned) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// What is touched, and what would be in a group with it.
fn mates<'t>(
    topology: &'t Topology,
    kernel: &Kernel,
    plan: &Plan,
    touched: &[&'t Function],
    fits: bool,
) -> Vec<&'t Function> {
    let mut mates: BTreeSet<Sbdf> = touched.iter().map(|function| function.sbdf()).collect();
    // A plan that is about another host says nothing of groups.
    if fits {
        let mut model = GroupModel::as_found(topology, kernel);
        plan.steps.iter().for_each(|step| step.apply(&mut model));
        let partition = model.groups();
        let groups = partition.groups().iter();
        let with = groups.filter(|group| group.iter().any(|at| mates.contains(at)));
        let with: Vec<Sbdf> = with.flatten().copied().collect();
        mates.extend(with);
    }
    let mates = mates.into_iter();
    mates.filter_map(|at| topology.get(at)).collect()
}

/// The functions that are taken from their drivers or removed.
fn touched<'t>(topology: &'t Topology, plan: &Plan) -> Vec<&'t Function> {
    let mut touched = plan.unplug.clone();
    for step in &plan.steps {
        if let Step::Remove { functions } = step {
            for function in functions {
                touched.insert(*function);
                touched.extend(topology.descendants(*function).map(Function::sbdf));
            }
        }
    }
    touched
        .into_iter()
        .filter_map(|function| topology.get(function))
        .collect()
}

/// The driver that a function has to lose before it can be taken from where it is; none if that can be done at once.
#[must_use]
pub fn obstacle(function: &Function) -> Option<&str> {
    function.driver().filter(|_| !is_idle(function))
}

/// Whether the driver of a function need not be unbound first: that of a port, or one that leaves a device idle.
fn is_idle(function: &Function) -> bool {
    match function.driver_kind() {
        DriverKind::Port => function.is_bridge(),
        DriverKind::Stub | DriverKind::Vfio => !function.is_bridge(),
        DriverKind::Unbound => true,
        DriverKind::Host => false,
    }
}
