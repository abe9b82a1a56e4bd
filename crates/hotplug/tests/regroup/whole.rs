//! Transactions without faults.

use std::sync::atomic::{AtomicBool, Ordering};

use hotplug::regroup::conformance::{Results, dead, unwilling, willing};
use hotplug::regroup::{Outcome, Record, Regroup, VmDevice, Vmm};
use iommu_group::{Goals, PlanOptions};

use crate::fake_host::WriteFault;
use crate::guests::{Behaviour, Guest};
use crate::{A, B, Bench, C, D, sbdf, set};

#[test]
fn endpoints_are_joined_and_isolated_and_nothing_else_changes() {
    for fixture in ["switch-four-nvme.json", "lab/edu-four-ports.json"] {
        for release in ["6.12.95", "7.2.12"] {
            let bench = Bench::with(fixture, release);
            let before = bench.host.snapshot();
            let plan = bench.join(&[A, B]);
            let report = bench.apply(&plan, &[]).unwrap();
            assert_eq!(
                report.outcome,
                Outcome::New,
                "{fixture} {release} {report:#?}"
            );
            assert_eq!(report.failure, None);
            assert_eq!(report.remains, []);
            let joined = bench.host.snapshot();
            let together = |a: &str, b: &str| {
                let mut groups = joined.groups.iter();
                groups.any(|group| group.contains(&sbdf(a)) && group.contains(&sbdf(b)))
            };
            assert!(together(A, B) && !together(A, C) && !together(C, D));
            for end in [A, B, C, D] {
                let facts = |s: &crate::fake_host::Snapshot| s.functions[&sbdf(end)].clone();
                assert_eq!(facts(&before), facts(&joined), "{end}");
            }
            let held = bench.state().status("first").unwrap().held;
            assert_eq!(held.is_empty(), plan.ports.is_empty(), "{held:?}");

            let back = bench.isolate(&[A, B]);
            let report = bench.apply(&back, &[]).unwrap();
            assert_eq!(report.outcome, Outcome::New, "{report:#?}");
            // Ports without devices may stay in one group.
            let after = bench.host.snapshot();
            assert_eq!(after.functions, before.functions, "{fixture} {release}");
            let alone = |end: &str| {
                let group = after.groups.iter().find(|group| group.contains(&sbdf(end)));
                let mut others = group.unwrap().iter().filter(|f| **f != sbdf(end));
                others.all(|other| ![A, B, C, D].map(sbdf).contains(other))
            };
            assert!([A, B, C, D].into_iter().all(alone), "{:?}", after.groups);
            let status = bench.state().status("first").unwrap();
            assert_eq!((status.held, status.unfinished), (vec![], None));
            assert_eq!(status.finished.len(), 2);
        }
    }
}

#[test]
fn a_port_stays_awake_while_another_setting_needs_it() {
    let bench = Bench::new();
    bench.apply(&bench.join(&[A, B]), &[]).unwrap();
    bench.apply(&bench.join(&[C, D]), &[]).unwrap();
    let all = bench.state().status("first").unwrap().held;
    let report = bench.apply(&bench.isolate(&[C, D]), &[]).unwrap();
    assert_eq!(report.outcome, Outcome::New, "{report:#?}");
    let held = bench.state().status("first").unwrap().held;
    let ports: Vec<String> = held.iter().map(|held| held.port.to_string()).collect();
    let wanted = [
        "0000:00:04.0",
        "0000:01:00.0",
        "0000:02:00.0",
        "0000:02:01.0",
    ];
    assert_eq!(ports, wanted);
    assert_eq!(all.len(), 6);
    assert!(held.iter().all(|held| held.power == "auto"), "{held:?}");
    for held in held {
        assert_eq!(bench.host.get(held.port, "power/control"), "on");
    }
}

#[test]
fn each_device_is_unplugged_and_plugged_once() {
    let bench = Bench::new();
    let (web, db) = (
        Guest::new("web", &[sbdf(A), sbdf(B)]),
        Guest::new("db", &[sbdf(C), sbdf(D)]),
    );
    let vmms: [&dyn Vmm; 2] = [&web, &db];
    bench.apply(&bench.join(&[C, D]), &[]).unwrap();
    let plan = bench.hand_over(&[A, B], &[C, D]);
    let report = bench.apply(&plan, &vmms).unwrap();
    assert_eq!(report.outcome, Outcome::New, "{report:#?}");
    assert_eq!(web.has(), [sbdf(A), sbdf(B)]);
    assert_eq!(db.has(), [sbdf(C), sbdf(D)]);
    for (guest, ends) in [(&web, [A, B]), (&db, [C, D])] {
        let mut log = guest.log.lock().unwrap().clone();
        log.sort();
        let once = ["plug", "revoke", "unplug"]
            .iter()
            .flat_map(|word| ends.map(|end| format!("{word} {end}")));
        assert_eq!(log, once.collect::<Vec<_>>());
    }
}

#[test]
fn the_last_journals_are_kept_and_numbers_are_unique() {
    let bench = Bench::new();
    bench.apply(&bench.join(&[A, B]), &[]).unwrap();
    let done = bench.state().path().join("done");
    for id in 2..=300 {
        let copy = done.join(format!("{id:06}.jsonl"));
        std::fs::copy(done.join("000001.jsonl"), copy).unwrap();
    }
    let report = bench.apply(&bench.isolate(&[A, B]), &[]).unwrap();
    assert_eq!(report.id, "000301");
    let finished = bench.state().status("first").unwrap().finished;
    let ids: Vec<&str> = finished.iter().map(|over| over.id.as_str()).collect();
    assert_eq!(ids.len(), 256);
    assert_eq!(
        (ids.first(), ids.last()),
        (Some(&"000301"), Some(&"000046"))
    );
}

#[test]
fn every_action_is_recorded() {
    let bench = Bench::new();
    let plan = bench.join(&[A, B]);
    let mut started = Vec::new();
    let regroup = Regroup::new(&bench.host, &[], bench.state());
    let report = regroup.apply(&plan, &mut |progress| {
        if let Record::Started { action } = progress.record {
            started.push(*action);
        }
    });
    let journal = std::fs::read_to_string(report.unwrap().journal).unwrap();
    let count = started.len();
    assert_eq!(started, (0..count).collect::<Vec<_>>());
    assert_eq!(journal.lines().count(), 2 * count + 2);
    let first: serde_json::Value = serde_json::from_str(journal.lines().next().unwrap()).unwrap();
    assert_eq!(first["record"], "begin");
    assert_eq!(first["plan"]["goals"]["join"][0][0], A);
}

#[test]
fn the_fake_vm_passes_the_conformance_suite() {
    let kept = |results: Results| {
        let failed = results.iter().filter(|(_, result)| result.is_err());
        assert_eq!(failed.count(), 0, "{results:#?}");
        assert!(results.len() >= 2);
    };
    let guest = Guest::new("web", &[sbdf(A), sbdf(B)]);
    let device = guest.devices().unwrap().remove(0);
    kept(willing(&guest, &device));
    *guest.behaviour.lock().unwrap() = Behaviour::Stalls(device.function);
    kept(unwilling(&guest, &device));
    *guest.behaviour.lock().unwrap() = Behaviour::Dead;
    kept(dead(&guest, &device));
}

#[test]
fn virtual_functions_of_a_neighbour_do_not_block() {
    let bench = Bench::with_virtual_function();
    let goals = Goals {
        join: vec![set(&[A, B])],
        ..Goals::default()
    };
    let options = PlanOptions {
        expose: set(&[C, D, "0000:06:10.0"]),
        ..PlanOptions::default()
    };
    let plan = bench.plan(&goals, &options);
    let report = bench.apply(&plan, &[]).unwrap();
    assert_eq!(report.outcome, Outcome::New, "{report:#?}");
}

#[test]
fn virtual_functions_are_restored_after_removal_and_unbind() {
    let number = |bench: &Bench| bench.host.get(sbdf(B), "sriov_numvfs");
    let bench = Bench::new();
    bench.host.set(sbdf(B), "sriov_numvfs", "2");
    let report = bench.apply(&bench.join(&[A, B]), &[]).unwrap();
    assert_eq!(report.outcome, Outcome::New, "{report:#?}");
    assert_eq!(number(&bench), "2");
    let writes = {
        let bench = Bench::new();
        bench.host.set(sbdf(B), "sriov_numvfs", "2");
        bench.host.fail(usize::MAX, WriteFault::KilledBefore);
        bench.apply(&bench.join(&[A, B]), &[]).unwrap();
        bench.host.written()
    };
    for write in (0..writes).step_by(3) {
        let bench = Bench::new();
        bench.host.set(sbdf(B), "sriov_numvfs", "2");
        bench.host.fail(write, WriteFault::Errno(5));
        let report = bench.apply(&bench.join(&[A, B]), &[]).unwrap();
        assert_eq!((report.outcome, report.remains), (Outcome::Old, vec![]));
        assert_eq!(number(&bench), "2", "write {write} failed");
    }
}

#[test]
fn a_stopped_transaction_is_undone_before_the_commit_and_completed_after_it() {
    let mut ends = Vec::new();
    for records in 0.. {
        let bench = Bench::new();
        let guest = Guest::new("web", &[sbdf(A), sbdf(B)]);
        let vmms = [&guest as &dyn Vmm];
        let before = bench.host.snapshot();
        let plan = bench.join(&[A, B]);
        let stop = AtomicBool::new(false);
        let mut count = 0;
        let report = Regroup::new(&bench.host, &vmms, bench.state())
            .until(&stop)
            .apply(&plan, &mut |_| {
                count += 1;
                stop.store(count > records, Ordering::Release);
            })
            .unwrap();
        assert_eq!(guest.has().len(), 2);
        assert_eq!(report.remains, []);
        if report.outcome == Outcome::Old {
            assert_eq!(report.failure.unwrap().1, "stopped on request");
            assert_eq!(bench.host.snapshot(), before);
        }
        ends.push(report.outcome);
        if count <= records {
            break;
        }
    }
    let turn = ends.iter().position(|end| *end == Outcome::New).unwrap();
    assert!(turn > 10 && turn + 5 < ends.len(), "{ends:?}");
    assert!(ends[..turn].iter().all(|end| *end == Outcome::Old));
    assert!(ends[turn..].iter().all(|end| *end == Outcome::New));
}

#[test]
fn forecast_and_report_name_the_devices_and_the_time() {
    let bench = Bench::new();
    let guest = Guest::new("web", &[sbdf(A), sbdf(B), sbdf(C)]);
    let vmms = [&guest as &dyn Vmm];
    let regroup = Regroup::new(&bench.host, &vmms, bench.state());
    let plan = bench.join(&[A, B]);
    let forecast = regroup.check(&plan).unwrap();
    assert_eq!(forecast.blockers, []);
    let functions = |devices: &[VmDevice]| -> Vec<_> {
        devices.iter().map(|d| d.function.to_string()).collect()
    };
    assert_eq!(functions(&forecast.unplug), [A, B]);
    assert_eq!(functions(&forecast.plug), [A, B]);
    assert_eq!(functions(&forecast.staying), [C]);
    assert_eq!(forecast.last_away_ms, None, "there was none before");
    let report = regroup.apply(&plan, &mut |_| {}).unwrap();
    assert_eq!(report.unplugged, forecast.unplug);
    let away = report.away_ms.unwrap();
    assert!(away < 60_000, "{away} ms");
    let back = guest.devices().unwrap();
    assert!(forecast.plug.iter().all(|device| back.contains(device)));
    let plan = bench.isolate(&[A, B]);
    let forecast = regroup.check(&plan).unwrap();
    assert_eq!(forecast.last_away_ms, Some(away));
    assert!(forecast.plug.iter().all(|device| !device.p2p));
}
