//! Checks before the first write.

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
use super::sysfs_ops::SysfsOps;
use super::usage::{Mounts, Offers, VfioUsers, lockdown};
use super::vmm::{ProposedDevices, VmDevice, Vmm, VmmError};

/// Result of the checks: blockers, and the affected devices of virtual machines.
pub(super) struct Preflight {
    pub(super) blockers: Vec<Blocker>,
    pub(super) assigned: Vec<VmDevice>,
    /// The other devices of virtual machines.
    pub(super) staying: Vec<VmDevice>,
    /// Functions that are exposed now because of the affected devices, accepted or not.
    pub(super) exposed: BTreeSet<Sbdf>,
    /// Functions whose future exposure is accepted.
    pub(super) expose: BTreeSet<Sbdf>,
}

impl Preflight {
    pub(super) fn of(
        ops: SysfsOps<'_>,
        topology: &Topology,
        plan: &Plan,
        vmms: &[&dyn Vmm],
        accepted: &BTreeSet<Sbdf>,
    ) -> Result<Self, HostError> {
        let kernel = Kernel::of(topology);
        let mut blockers = against_plan(topology, &kernel, plan);
        let fits = fits(&blockers);
        blockers.extend(lockdown(ops.host()).map(|mode| Blocker::Lockdown { mode }));
        if kernel.parameters.acs_override.is_some() {
            blockers.push(Blocker::AcsOverride);
        }
        blockers.extend(odd_registers(topology, plan));
        let touched = touched(topology, plan);
        let mates = mates(topology, &kernel, plan, &touched, fits);
        let Holdings { assigned, silent } =
            Holdings::query(vmms, |assigned| is_open(ops, topology, &mates, assigned))?;
        blockers.extend(silent);
        blockers.extend(users(ops, topology, &touched, &assigned)?);
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

/// The exposures that involve devices that are unplugged and plugged back.
fn exposed_in(
    routing: &RoutingModel<'_>,
    groups: &Groups,
    plan: &Plan,
    assigned: &[VmDevice],
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

/// Whether the plan itself warns about the exposure of a function.
fn is_objected(plan: &Plan, function: Sbdf) -> bool {
    plan.objections.iter().any(|objection| match objection {
        Warning::Exposes(exposure) => exposure.function == function,
        _ => false,
    })
}

/// Virtual machines that cannot take their devices back as planned, or whose memory the devices would not reach.
pub(super) fn unwilling(
    vmms: &[&dyn Vmm],
    topology: &Topology,
    plan: &Plan,
    replug: &[VmDevice],
    staying: &[VmDevice],
) -> Vec<Blocker> {
    let routing = RoutingModel::of(&after(topology, plan));
    let refused = |vmm: &&dyn Vmm| {
        let of_it = |device: &&VmDevice| device.vm == vmm.name();
        if !replug.iter().any(|device| of_it(&device)) {
            return None;
        }
        let back = replug.iter().filter(of_it);
        let holes = |device: &VmDevice| (device.function, routing.memory_holes(device.function));
        let devices = back.clone().chain(staying.iter().filter(of_it));
        let proposed = ProposedDevices {
            devices: &devices.cloned().collect::<Vec<_>>(),
            routes: &plan.routes,
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

/// Blockers of the plan itself. The same goals must still result in the same plan, so everything that it depends on is
/// unchanged.
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

/// The host as the plan leaves it.
pub(super) fn after<'t>(topology: &'t Topology, plan: &Plan) -> GroupModel<'t> {
    let mut model = GroupModel::as_found(topology, &Kernel::of(topology));
    plan.steps.iter().for_each(|step| step.apply(&mut model));
    model
}

/// Groups that would contain devices of several virtual machines. Only one process at a time can open a group (linux
/// 7.2 drivers/vfio/group.c: `vfio_group_fops_open()`), so all but one VM could not get their devices back.
fn shared(model: &GroupModel<'_>, assigned: &[VmDevice]) -> Vec<Blocker> {
    let groups = model.groups();
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

/// The affected functions, and those that would be in a group with them.
fn mates<'t>(
    topology: &'t Topology,
    kernel: &Kernel,
    plan: &Plan,
    touched: &[&'t Function],
    fits: bool,
) -> Vec<&'t Function> {
    let mut mates: BTreeSet<Sbdf> = touched.iter().map(|function| function.sbdf()).collect();
    // A plan for another host does not predict groups.
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

/// The functions that are unbound or removed.
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
