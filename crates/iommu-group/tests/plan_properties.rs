//! What must hold for every plan, on machines and goals drawn from seeds. That a plan is safe at every moment and does
//! what it says is watched while it is carried out.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot set up its machine should stop"
)]

#[path = "common/carry_out.rs"]
mod carry_out;

use std::collections::BTreeSet;

use carry_out::{as_topology, carry_out};
use iommu_group::{
    AcsBits, Goals, Groups, Kernel, Plan, PlanOptions, RoutePreference, Sbdf, Topology, Warning,
};
use test_machine::Machine;
use test_machine::random::{self, Random};

struct OnPanic<'a>(u64, &'a str, String);

impl Drop for OnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("seed {}:{}{}", self.0, self.1, self.2);
        }
    }
}

fn some(random: &mut Random, from: &[Sbdf], most: usize) -> BTreeSet<Sbdf> {
    (0..random.below(most + 1))
        .map(|_| random.pick(from))
        .collect()
}

fn goals(random: &mut Random, topology: &Topology) -> Goals {
    let functions = topology.functions();
    let devices: Vec<Sbdf> = functions
        .iter()
        .filter(|f| !f.is_bridge())
        .map(|f| f.sbdf())
        .collect();
    let ports: Vec<Sbdf> = functions
        .iter()
        .filter(|f| f.port_type().is_downstream() && f.acs().registers().is_some())
        .map(|f| f.sbdf())
        .collect();
    let mut goals = Goals::default();
    for _ in 0..random.below(3) {
        // Functions below one root port can be joined, so draw them from there most of the time.
        let first = random.pick(&devices);
        let root = topology.ancestors(first).last().map_or(first, |f| f.sbdf());
        let near: Vec<Sbdf> = topology
            .descendants(root)
            .filter(|f| !f.is_bridge())
            .map(|f| f.sbdf())
            .collect();
        let from = if near.is_empty() || random.once_in(8) {
            &devices
        } else {
            &near
        };
        let set = some(random, from, 4);
        if set.len() > 1 || random.once_in(10) {
            goals.join.push(set);
        }
    }
    if random.once_in(3) {
        goals.isolate = some(random, &devices, 3);
    }
    if random.once_in(4) && !ports.is_empty() {
        let word = u16::try_from(random.below(0x80)).unwrap();
        goals
            .acs
            .insert(random.pick(&ports), AcsBits::from_bits_retain(word));
    }
    goals
}

#[test]
fn plans_are_safe_and_do_what_they_say() {
    let (mut made, mut refused, mut accepted) = (0, 0, 0);
    for seed in 0..160 {
        let mut random = Random::new(seed ^ 0x5eed);
        let text = random::machine(&mut random);
        let mut machine = Machine::new(&text);
        if random.once_in(2) {
            machine = machine.cpu("AuthenticAMD", 0x19);
        }
        let mut topology = machine.started();
        for _ in 0..4 {
            let kernel = Kernel::of(&topology);
            let goals = goals(&mut random, &topology);
            let mut options = PlanOptions {
                route: random.pick(&[
                    RoutePreference::Mildest,
                    RoutePreference::Direct,
                    RoutePreference::Iommu,
                ]),
                ..PlanOptions::default()
            };
            let said = format!("{}\n{goals:?} {options:?}\n", topology.to_fixture().len());
            let _guard = OnPanic(seed, &text, said);
            let Ok(plan) = Plan::make(&topology, &kernel, &goals, &options) else {
                refused += 1;
                continue;
            };
            carry_out(&topology, &kernel, &plan);
            made += 1;
            assert_eq!(Plan::from_json(&plan.to_json()).unwrap(), plan);
            // Once every objection is met by name, none is left but those that cannot be met.
            for (option, function) in plan.objections.iter().filter_map(Warning::remedy) {
                match option {
                    "expose" => options.expose.insert(function),
                    "with" => options.with.insert(function),
                    other => panic!("no option {other}"),
                };
            }
            let plan = Plan::make(&topology, &kernel, &goals, &options).unwrap();
            let remedies: Vec<_> = plan.objections.iter().filter_map(Warning::remedy).collect();
            if options.route != RoutePreference::Mildest {
                assert_eq!(remedies, []);
            }
            if plan.is_acceptable() {
                accepted += 1;
                topology = as_topology(&carry_out(&topology, &kernel, &plan));
                // And then there is nothing left to do, groups and words being as they were asked to be.
                let again = Plan::make(&topology, &Kernel::of(&topology), &plan.goals, &options);
                let steps = again.map(|plan| plan.steps.len());
                assert!(steps.is_ok(), "{steps:?}");
            }
        }
    }
    // Draws that lead nowhere would make this test worthless.
    assert!(
        made > 100 && refused > 30 && accepted > 60,
        "{made} {refused} {accepted}"
    );
}

#[test]
fn what_was_joined_can_be_isolated_again() {
    let mut count = 0;
    for seed in 0..150 {
        let mut random = Random::new(seed ^ 0xface);
        let text = random::machine(&mut random);
        let topology = Machine::new(&text).started();
        let kernel = Kernel::of(&topology);
        let _guard = OnPanic(seed, &text, String::new());
        let before = Groups::found(&topology);
        // Only those that are alone to begin with can be alone again.
        let device = |f: &&Sbdf| topology.get(**f).is_some_and(|f| !f.is_bridge());
        let alone = |f: &Sbdf| {
            before
                .group_of(*f)
                .is_some_and(|group| group.iter().filter(device).count() == 1)
        };
        let devices: Vec<Sbdf> = topology
            .functions()
            .iter()
            .map(|f| f.sbdf())
            .filter(|f| device(&f) && alone(f))
            .collect();
        let Some(first) = devices.first().map(|_| random.pick(&devices)) else {
            continue;
        };
        let root = |f: Sbdf| topology.ancestors(f).last().map(|f| f.sbdf());
        let near: Vec<Sbdf> = devices
            .into_iter()
            .filter(|f| root(*f) == root(first))
            .collect();
        let mut set = some(&mut random, &near, 3);
        set.insert(first);
        if set.len() < 2 {
            continue;
        }
        let join = Goals {
            join: vec![set.clone()],
            ..Goals::default()
        };
        let Ok(plan) = Plan::make(&topology, &kernel, &join, &PlanOptions::default()) else {
            continue;
        };
        if !plan.lost.is_empty() {
            continue;
        }
        let joined = as_topology(&carry_out(&topology, &kernel, &plan));
        let isolate = Goals {
            isolate: set.clone(),
            ..Goals::default()
        };
        let kernel = Kernel::of(&joined);
        let back = Plan::make(&joined, &kernel, &isolate, &PlanOptions::default()).unwrap();
        let end = Groups::found(&as_topology(&carry_out(&joined, &kernel, &back)));
        for function in &set {
            let mates = end
                .group_of(*function)
                .unwrap()
                .iter()
                .filter(device)
                .count();
            assert_eq!(mates, 1, "{function}");
        }
        count += 1;
    }
    assert!(count > 10, "{count}");
}
