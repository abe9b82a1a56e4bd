//! Carrying a plan out on a model, and watching that it is safe at every moment.

#![allow(dead_code, reason = "each test uses its part")]
#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot set up its machine should stop"
)]

use std::collections::BTreeSet;

use iommu_group::{
    AcsBits, Function, GroupModel, Kernel, Plan, PortType, RoutingModel, Sbdf, Step, Topology,
    UntranslatedReach,
};

/// Does every step to a model of the machine. Panics if the model is not as a step expects it, if a device is reachable
/// that must not be, or if something alive is below a port that lost what keeps it safe.
pub(crate) fn carry_out<'t>(
    topology: &'t Topology,
    kernel: &Kernel,
    plan: &Plan,
) -> GroupModel<'t> {
    let mut watch = Watch::new(topology, kernel, plan);
    for (number, step) in plan.steps.iter().enumerate() {
        watch.step(step);
        watch.check(&format!("after step {number}, {step:?}"));
    }
    watch.finish()
}

/// A model as a machine that could be scanned: groups, ACS words and egress control vectors are written into its file.
pub(crate) fn as_topology(model: &GroupModel<'_>) -> Topology {
    let mut document: serde_json::Value =
        serde_json::from_str(&model.topology().to_fixture()).unwrap();
    for (number, group) in model.groups().groups().iter().enumerate() {
        for member in group {
            document["functions"][member.to_string()]["iommu_group"] = number.into();
        }
    }
    for function in model.topology().functions() {
        let (Some(acs), Some(control)) = (
            function.acs().registers(),
            model.acs_control(function.sbdf()),
        ) else {
            continue;
        };
        let config = &mut document["functions"][function.sbdf().to_string()]["config"];
        write(config, acs.control_offset(), &control.bits().to_le_bytes());
        if let Some(vector) = model.egress(function.sbdf()) {
            for (word, at) in vector.words().zip((acs.offset + 8..).step_by(4)) {
                write(config, at, &word.to_le_bytes());
            }
        }
    }
    Topology::from_fixture(&document.to_string()).unwrap()
}

/// Writes to a configuration space in a file, within one of its lines of 16 bytes.
fn write(config: &mut serde_json::Value, offset: u16, bytes: &[u8]) {
    let line = format!("{:03x}", offset / 16 * 16);
    let mut hex = config[&line].as_str().unwrap_or("").to_owned();
    let (at, digits) = (usize::from(offset % 16) * 2, bytes.len() * 2);
    while hex.len() < at + digits {
        hex.push('0');
    }
    let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    hex.replace_range(at..at + digits, &text);
    config[&line] = hex.into();
}

struct Watch<'t, 'p> {
    topology: &'t Topology,
    plan: &'p Plan,
    before: GroupModel<'t>,
    model: GroupModel<'t>,
    unplugged: BTreeSet<Sbdf>,
    awake: BTreeSet<Sbdf>,
}

impl<'t, 'p> Watch<'t, 'p> {
    fn new(topology: &'t Topology, kernel: &Kernel, plan: &'p Plan) -> Self {
        let model = GroupModel::as_found(topology, kernel);
        Self {
            topology,
            plan,
            before: model.clone(),
            model,
            unplugged: BTreeSet::new(),
            awake: BTreeSet::new(),
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Unplug { functions } => {
                assert!(self.unplugged.is_empty(), "unplugged once");
                self.unplugged = functions.clone();
            }
            Step::Replug { functions } => {
                assert!(functions.is_subset(&self.unplugged));
                assert!(functions.iter().all(|f| self.model.is_present(*f)));
                self.unplugged.clear();
            }
            Step::KeepAwake { ports } => self.awake.extend(ports),
            Step::SetAcs { port, from, .. } => {
                assert_eq!(
                    self.model.acs_control(*port),
                    Some(*from),
                    "{port} is as expected"
                );
                assert!(self.awake.contains(port), "{port} is awake");
            }
            Step::SetEgress { port, from, .. } => {
                assert_eq!(self.model.egress(*port), Some(*from));
                assert!(self.awake.contains(port), "{port} is awake");
            }
            Step::Remove { functions } => {
                for function in functions {
                    assert!(
                        self.model.is_present(*function),
                        "{function} is there to be removed"
                    );
                    let devices = std::iter::once(*function)
                        .chain(self.topology.descendants(*function).map(Function::sbdf))
                        .filter(|f| self.is_device(*f));
                    for device in devices {
                        assert!(
                            self.unplugged.contains(&device),
                            "{device} is unplugged first"
                        );
                    }
                    // What is found again does not stay awake by itself.
                    self.awake.remove(function);
                    for below in self.topology.descendants(*function) {
                        self.awake.remove(&below.sbdf());
                    }
                }
            }
            Step::Rescan { below } => {
                assert!(below.iter().all(|port| self.awake.contains(port)));
            }
            Step::CheckGroups { expect } => {
                let partition = self.model.groups();
                for group in expect {
                    assert_eq!(partition.group_of(group[0]), Some(group.as_slice()));
                }
                let neighbours = self
                    .topology
                    .functions()
                    .iter()
                    .filter(|f| self.is_neighbour(f.sbdf()));
                for neighbour in neighbours {
                    assert_eq!(
                        partition.group_of(neighbour.sbdf()).map(<[Sbdf]>::len),
                        self.before
                            .groups()
                            .group_of(neighbour.sbdf())
                            .map(<[Sbdf]>::len),
                        "{} keeps its group",
                        neighbour.sbdf()
                    );
                }
            }
        }
        step.apply(&mut self.model);
    }

    fn is_device(&self, function: Sbdf) -> bool {
        self.topology.get(function).is_some_and(|f| !f.is_bridge())
    }

    /// A function whose group the plan does not say to change.
    fn is_neighbour(&self, function: Sbdf) -> bool {
        self.is_device(function)
            && !self
                .plan
                .groups
                .iter()
                .any(|change| change.function == function)
            && !self.plan.unplug.contains(&function)
    }

    fn alive(&self) -> Vec<Sbdf> {
        let functions = self.topology.functions().iter().map(Function::sbdf);
        functions
            .filter(|f| {
                self.is_device(*f) && self.model.is_present(*f) && !self.unplugged.contains(f)
            })
            .collect()
    }

    fn accepted(&self, from: Sbdf, to: Sbdf) -> bool {
        let joined = self
            .plan
            .goals
            .join
            .iter()
            .any(|set| set.contains(&from) && set.contains(&to));
        let objected = self
            .plan
            .objections
            .iter()
            .any(|objection| match objection {
                iommu_group::Warning::Exposes(exposure) => exposure.function == to,
                _ => false,
            });
        (joined && self.model.together(from, to))
            || self.plan.options.expose.contains(&to)
            || objected
    }

    fn check(&self, when: &str) {
        let (before, now) = (
            RoutingModel::of(&self.before),
            RoutingModel::of(&self.model),
        );
        let alive = self.alive();
        for from in &alive {
            for to in &alive {
                let newly = now.reach(*from, *to) == UntranslatedReach::Yes
                    && before.reach(*from, *to) != UntranslatedReach::Yes;
                assert!(
                    !newly || self.accepted(*from, *to),
                    "{when}: {from} reaches {to}"
                );
            }
        }
        for port in self
            .topology
            .functions()
            .iter()
            .filter(|f| f.port_type().is_downstream())
        {
            let sbdf = port.sbdf();
            let (Some(was), Some(is)) =
                (self.before.acs_control(sbdf), self.model.acs_control(sbdf))
            else {
                continue;
            };
            let implemented = port.acs().registers().unwrap().capability;
            let lost = was & !is & implemented;
            let below = || {
                let mut devices = self.topology.descendants(sbdf).map(Function::sbdf);
                devices.any(|f| alive.contains(&f))
            };
            let asked = self.plan.goals.acs.contains_key(&sbdf);
            assert!(
                asked || !lost.contains(AcsBits::SV),
                "{when}: {sbdf} keeps source validation"
            );
            if port.port_type() == PortType::RootPort && !asked {
                assert!(
                    !lost.contains(AcsBits::RR) || !below(),
                    "{when}: {sbdf} redirects"
                );
            }
        }
    }

    /// What is isolated is reached by nobody, but through ports that have nothing to stop it with.
    fn check_isolation(&self) {
        let routing = RoutingModel::of(&self.model);
        for to in self
            .plan
            .goals
            .isolate
            .difference(&self.plan.options.expose)
        {
            for from in self.alive().into_iter().filter(|from| from != to) {
                let Some(port) = routing
                    .path(from, *to)
                    .ingress
                    .and_then(|at| self.topology.get(at))
                else {
                    continue;
                };
                let redirects = |port: &Function| {
                    port.acs()
                        .registers()
                        .is_some_and(|acs| acs.capability.contains(AcsBits::RR))
                };
                let can_stop = port.port_type().is_downstream() && redirects(port);
                let asked = self.plan.goals.acs.contains_key(&port.sbdf());
                if can_stop && !asked {
                    assert_ne!(
                        routing.reach(from, *to),
                        UntranslatedReach::Yes,
                        "{from} reaches {to}"
                    );
                }
            }
        }
    }

    fn finish(self) -> GroupModel<'t> {
        assert!(self.unplugged.is_empty() || self.unplugged.is_subset(&self.plan.lost));
        for set in &self.plan.goals.join {
            for a in set {
                assert!(
                    set.iter().all(|b| self.model.together(*a, *b)),
                    "{set:?} are joined"
                );
            }
        }
        self.check_isolation();
        for change in &self.plan.groups {
            let partition = self.model.groups();
            assert_eq!(
                partition.group_of(change.function).unwrap_or_default(),
                change.after
            );
        }
        let after = RoutingModel::of(&self.model);
        for change in &self.plan.routes {
            assert_eq!(after.route(change.from, change.to), change.after);
        }
        for change in &self.plan.ports {
            assert_eq!(self.model.acs_control(change.port), Some(change.after));
            assert!(
                !change.hold || self.awake.contains(&change.port),
                "{change:?} stays awake"
            );
        }
        self.model
    }
}
