//! Plans that give devices back to a virtual machine where they reach others without the IOMMU, or are reached so.

use hotplug::regroup::{Assigned, Blocker, Regroup, RegroupError, Vmm, exposures};
use iommu_group::{Goals, Groups, Plan, PlanOptions, RoutePreference, RoutingModel, Sbdf};

use crate::guests::{Guest, Mood};
use crate::{A, B, Bench, C, D, sbdf, set};

/// The port above the third device lets its requests go straight; nobody asked for that.
fn bench() -> Bench {
    let bench = Bench::new();
    bench.machine.meddle(sbdf("0000:02:02.0"), 0x11);
    bench
}

/// The first two are joined, and their requests go through the IOMMU: nothing becomes reachable by that.
fn plan(bench: &Bench, expose: &[&str]) -> Plan {
    let goals = Goals {
        join: vec![set(&[A, B])],
        ..Goals::default()
    };
    let options = PlanOptions {
        route: RoutePreference::Iommu,
        expose: set(expose),
        ..PlanOptions::default()
    };
    let plan = bench.plan(&goals, &options);
    assert_eq!(plan.objections, []);
    plan
}

fn refused(result: Result<hotplug::regroup::Report, RegroupError>) -> Vec<Blocker> {
    match result {
        Err(RegroupError::Refused(refusal)) => refusal.blockers,
        other => panic!("{other:?}"),
    }
}

fn expose_of(guest: &Guest) -> Vec<(Sbdf, Vec<Sbdf>)> {
    let devices = guest.devices().unwrap().into_iter();
    devices
        .map(|device: Assigned| (device.function, device.expose.into_iter().collect()))
        .collect()
}

#[test]
fn invariant_3_a_plan_that_leaves_a_guests_device_exposed_is_refused_unless_named() {
    let bench = bench();
    let guest = Guest::new("web", &[sbdf(A), sbdf(B)]);
    let blockers = refused(bench.apply(&plan(&bench, &[]), &[&guest]));
    let lines: Vec<String> = blockers.iter().map(ToString::to_string).collect();
    assert_eq!(
        lines,
        [A, B].map(|function| format!(
            "devices would come back to web although {C} reaches {function} without the IOMMU, through 0000:02:02.0 \
             (accept it: --expose {function})"
        ))
    );
    assert_eq!(guest.log.lock().unwrap().len(), 0, "nothing was touched");
    assert_eq!(
        refused(bench.apply(&plan(&bench, &[A]), &[&guest])).len(),
        1
    );

    bench.apply(&plan(&bench, &[A, B]), &[&guest]).unwrap();
    let both = vec![sbdf(A), sbdf(B)];
    assert_eq!(
        expose_of(&guest),
        [(sbdf(A), both.clone()), (sbdf(B), both)],
        "the VMM is told what is accepted"
    );
}

#[test]
fn invariant_3_what_the_policy_accepts_need_not_be_named() {
    let bench = bench();
    let guest = Guest::new("web", &[sbdf(A), sbdf(B)]);
    let vmms: [&dyn Vmm; 1] = [&guest];
    let regroup = Regroup::new(&bench.machine, &vmms, bench.state());
    let regroup = regroup.accepting(set(&[A, B, D]));
    regroup.apply(&plan(&bench, &[]), &mut |_| {}).unwrap();
    let both = vec![sbdf(A), sbdf(B)];
    let told = expose_of(&guest);
    assert_eq!(told[0].1, both, "and nothing else is accepted with it");
}

#[test]
fn devices_of_others_and_devices_that_stay_do_not_count() {
    let bench = bench();
    // The fourth is exposed as before, whatever becomes of the first two, which nobody has.
    let guest = Guest::new("web", &[sbdf(D)]);
    let report = bench.apply(&plan(&bench, &[]), &[&guest]).unwrap();
    assert_eq!(report.failure, None);
}

#[test]
fn what_is_isolated_comes_back_without_being_exposed() {
    let bench = bench();
    let guest = Guest::new("web", &[sbdf(C)]);
    let goals = Goals {
        isolate: set(&[C]),
        ..Goals::default()
    };
    let plan = bench.plan(&goals, &PlanOptions::default());
    bench.apply(&plan, &[&guest]).unwrap();
    assert_eq!(expose_of(&guest), [(sbdf(C), Vec::new())]);
}

#[test]
fn undoing_gives_devices_back_as_exposed_as_they_were() {
    let bench = bench();
    let guest = Guest::new("web", &[sbdf(A), sbdf(B)]);
    *guest.mood.lock().unwrap() = Mood::Stalls(sbdf(B));
    let report = bench.apply(&plan(&bench, &[A, B]), &[&guest]).unwrap();
    assert!(report.failure.is_some());
    let told = expose_of(&guest);
    assert_eq!(told[0], (sbdf(A), vec![sbdf(A), sbdf(B)]));
}

#[test]
fn exposures_are_listed_for_each_guest_with_what_was_accepted() {
    let bench = bench();
    let topology = bench.machine.topology();
    let device = |vm: &str, function: &str, expose: &[&str]| Assigned {
        vm: vm.to_owned(),
        id: function.to_owned(),
        function: sbdf(function),
        p2p: false,
        domain: None,
        expose: set(expose),
        slot: None,
    };
    let assigned = [device("db", D, &[]), device("web", A, &[A])];
    let found = exposures(
        &RoutingModel::found(&topology),
        &Groups::found(&topology),
        &assigned,
        &set(&[]),
    );
    let found: Vec<_> = found
        .iter()
        .map(|one| {
            let exposed = &one.exposed;
            let accepted = exposed.consent.is_some();
            (one.vm.as_str(), exposed.exposure.function, accepted)
        })
        .collect();
    assert_eq!(found, [("db", sbdf(D), false), ("web", sbdf(A), true)]);
}
