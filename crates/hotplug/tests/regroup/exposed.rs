//! Plans that give devices back to a virtual machine with an exposure: without the IOMMU they reach others or are
//! reached.

use hotplug::regroup::{Blocker, Regroup, RegroupError, VmDevice, Vmm};
use iommu_group::{Goals, Plan, PlanOptions, RoutePreference, Sbdf};

use crate::guests::{Behaviour, Guest};
use crate::{A, B, Bench, C, D, sbdf, set};

/// The port above the third device does not redirect requests, and no goal asks for that.
fn bench() -> Bench {
    let bench = Bench::new();
    bench.host.meddle(sbdf("0000:02:02.0"), 0x11);
    bench
}

/// The first two devices are joined and their requests go through the IOMMU, so the plan exposes nothing itself.
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
        .map(|device: VmDevice| (device.function, device.expose.into_iter().collect()))
        .collect()
}

#[test]
fn invariant_3_a_plan_that_leaves_a_guests_device_exposed_is_refused_unless_accepted() {
    let bench = bench();
    let guest = Guest::new("web", &[sbdf(A), sbdf(B)]);
    let blockers = refused(bench.apply(&plan(&bench, &[]), &[&guest]));
    let lines: Vec<String> = blockers.iter().map(ToString::to_string).collect();
    assert_eq!(
        lines,
        [A, B].map(|function| format!(
            "devices of web would come back exposed: {C} reaches {function} without the IOMMU, through 0000:02:02.0 \
             (accept it: --expose {function})"
        ))
    );
    assert_eq!(guest.log.lock().unwrap().len(), 0, "the guest got no calls");
    assert_eq!(
        refused(bench.apply(&plan(&bench, &[A]), &[&guest])).len(),
        1
    );

    bench.apply(&plan(&bench, &[A, B]), &[&guest]).unwrap();
    let both = vec![sbdf(A), sbdf(B)];
    assert_eq!(
        expose_of(&guest),
        [(sbdf(A), both.clone()), (sbdf(B), both)],
        "the VMM gets the accepted exposure"
    );
}

#[test]
fn invariant_3_exposures_that_the_policy_accepts_do_not_block() {
    let bench = bench();
    let guest = Guest::new("web", &[sbdf(A), sbdf(B)]);
    let vmms: [&dyn Vmm; 1] = [&guest];
    let regroup = Regroup::new(&bench.host, &vmms, bench.state());
    let regroup = regroup.accepting(set(&[A, B, D]));
    regroup.apply(&plan(&bench, &[]), &mut |_| {}).unwrap();
    let both = vec![sbdf(A), sbdf(B)];
    let told = expose_of(&guest);
    assert_eq!(told[0].1, both, "and nothing else was accepted");
}

#[test]
fn other_devices_and_devices_that_stay_do_not_block() {
    let bench = bench();
    // The fourth is exposed as before, independently of the first two, which no VM has.
    let guest = Guest::new("web", &[sbdf(D)]);
    let report = bench.apply(&plan(&bench, &[]), &[&guest]).unwrap();
    assert_eq!(report.failure, None);
}

#[test]
fn an_isolated_device_comes_back_without_an_exposure() {
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
fn undo_gives_devices_back_with_their_former_exposures() {
    let bench = bench();
    let guest = Guest::new("web", &[sbdf(A), sbdf(B)]);
    *guest.behaviour.lock().unwrap() = Behaviour::Stalls(sbdf(B));
    let report = bench.apply(&plan(&bench, &[A, B]), &[&guest]).unwrap();
    assert!(report.failure.is_some());
    let told = expose_of(&guest);
    assert_eq!(told[0], (sbdf(A), vec![sbdf(A), sbdf(B)]));
}
