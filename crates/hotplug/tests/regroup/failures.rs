//! Failing writes, guests that do not cooperate, and hosts that behave unexpectedly.

use std::fs;
use std::os::unix::fs::MetadataExt;

use hotplug::regroup::{Outcome, Regroup, Vmm};

use crate::fake_host::WriteFault;
use crate::guests::{Behaviour, Guest};
use crate::{A, B, Bench, C, D, brief, sbdf};

/// EIO, EBUSY, ENODEV.
const ERRNOS: [i32; 3] = [5, 16, 19];

#[test]
fn a_failed_write_is_reported_and_undone() {
    let writes = {
        let bench = Bench::new();
        bench.host.fail(usize::MAX, WriteFault::KilledBefore);
        bench.apply(&bench.join(&[A, B]), &[]).unwrap();
        bench.host.written()
    };
    assert!(writes > 20);
    for write in (0..writes).step_by(6) {
        for errno in ERRNOS {
            let bench = Bench::new();
            let guest = Guest::new("web", &[sbdf(A), sbdf(B)]);
            let before = bench.host.snapshot();
            let plan = bench.join(&[A, B]);
            bench.host.fail(write, WriteFault::Errno(errno));
            let report = bench.apply(&plan, &[&guest as &dyn Vmm]).unwrap();
            assert!(bench.host.failed());
            let what = format!("write {write}, errno {errno}: {}", brief(Some(&report)));
            assert_eq!(report.outcome, Outcome::Old, "{what}");
            assert_eq!(report.remains, [], "{what}");
            assert_eq!(bench.host.snapshot(), before, "{what}");
            assert_eq!(guest.has().len(), 2, "{what}");
            let (action, error) = report.failure.clone().unwrap();
            assert!(!action.is_empty() && error.contains("/sys/"), "{what}");
            assert!(error.contains(&format!("os error {errno}")), "{what}");
        }
    }
}

#[test]
fn a_guest_that_does_not_release_a_device_stops_the_transaction() {
    let bench = Bench::new();
    let before = bench.host.snapshot();
    let guest = Guest::new("web", &[sbdf(A), sbdf(B)]);
    *guest.behaviour.lock().unwrap() = Behaviour::Stalls(sbdf(B));
    let plan = bench.join(&[A, B]);
    bench.host.fail(0, WriteFault::Errno(5));
    let report = bench.apply(&plan, &[&guest as &dyn Vmm]).unwrap();
    assert!(!bench.host.failed(), "nothing was written to the host");
    assert_eq!(report.outcome, Outcome::Old);
    assert_eq!(bench.host.snapshot(), before);
    assert_eq!(guest.has(), [sbdf(A), sbdf(B)], "the other one is back");
    let (_, error) = report.failure.unwrap();
    assert!(error.starts_with("the guest of web did not release dev-0000:04:00.0"));
    assert_eq!(report.remains, []);
}

#[test]
fn a_vm_that_takes_no_device_back_is_reported() {
    let bench = Bench::new();
    let before = bench.host.snapshot();
    let guest = Guest::new("web", &[sbdf(A), sbdf(B)]);
    *guest.behaviour.lock().unwrap() = Behaviour::Refuses;
    let report = bench
        .apply(&bench.join(&[A, B]), &[&guest as &dyn Vmm])
        .unwrap();
    assert_eq!(report.outcome, Outcome::Old);
    assert_eq!(bench.host.snapshot(), before, "the host is as it was");
    let remains: Vec<String> = report.remains.iter().map(ToString::to_string).collect();
    assert_eq!(
        remains,
        [
            format!("{A} is not back in VM web"),
            format!("{B} is not back in VM web")
        ]
    );
}

#[test]
fn a_vm_that_ends_meanwhile_does_not_stop_the_transaction() {
    let bench = Bench::new();
    let (web, db) = (Guest::new("web", &[sbdf(A)]), Guest::new("db", &[sbdf(C)]));
    bench.apply(&bench.join(&[C, D]), &[]).unwrap();
    let plan = bench.hand_over(&[A, B], &[C, D]);
    let regroup_vmms: [&dyn Vmm; 2] = [&web, &db];
    let regroup = Regroup::new(&bench.host, &regroup_vmms, bench.state());
    let report = regroup.apply(&plan, &mut |progress| {
        if let Some(hotplug::regroup::Action::Remove { .. }) = progress.action {
            *web.behaviour.lock().unwrap() = Behaviour::Dead;
        }
    });
    let report = report.unwrap();
    assert_eq!(report.outcome, Outcome::New, "{}", brief(Some(&report)));
    assert_eq!(db.has(), [sbdf(C)]);
    let remains: Vec<String> = report.remains.iter().map(ToString::to_string).collect();
    assert_eq!(remains, [format!("VM web has ended; {A} is not assigned")]);
}

#[test]
fn groups_that_differ_from_the_prediction_are_undone() {
    // Another program restores the root port just before the scan: no group is formed.
    let bench = Bench::new();
    let before = bench.host.snapshot();
    let plan = bench.join(&[A, B]);
    let regroup = Regroup::new(&bench.host, &[], bench.state());
    let port = sbdf("0000:00:04.0");
    let report = regroup.apply(&plan, &mut |progress| {
        let started = matches!(progress.record, hotplug::regroup::Record::Started { .. });
        if started
            && matches!(
                progress.action,
                Some(hotplug::regroup::Action::Rescan { .. })
            )
        {
            bench.host.meddle(port, 0x1d);
        }
    });
    let report = report.unwrap();
    assert_eq!(report.outcome, Outcome::Old);
    let now = bench.host.snapshot();
    assert_eq!(
        now.differences(&before),
        [""; 0],
        "{}",
        brief(Some(&report))
    );
    let (_, error) = report.failure.unwrap();
    assert!(error.contains("groups are not as predicted"), "{error}");
}

#[test]
fn four_devices_in_two_vms_survive_a_failure_at_the_end() {
    let bench = Bench::new();
    let (web, db) = (
        Guest::new("web", &[sbdf(A), sbdf(B)]),
        Guest::new("db", &[sbdf(C), sbdf(D)]),
    );
    *db.behaviour.lock().unwrap() = Behaviour::Stalls(sbdf(D));
    let vmms: [&dyn Vmm; 2] = [&web, &db];
    bench.apply(&bench.join(&[C, D]), &[]).unwrap();
    let plan = bench.hand_over(&[A, B], &[C, D]);
    let before = bench.host.snapshot();
    let report = bench.apply(&plan, &vmms).unwrap();
    assert_eq!(report.outcome, Outcome::Old);
    assert_eq!(bench.host.snapshot(), before);
    assert_eq!((web.has().len(), db.has().len()), (2, 2));
}

#[test]
fn journal_space_is_reserved_before_the_first_action() {
    for write in [5, 15, 25, usize::MAX] {
        let bench = Bench::new();
        let guest = Guest::new("web", &[sbdf(A), sbdf(B)]);
        let (vmms, plan) = ([&guest as &dyn Vmm], bench.join(&[A, B]));
        bench.host.fail(write, WriteFault::Errno(5));
        let path = bench.state().path().join("running.jsonl");
        let (mut reserved, mut length) = (0, 0);
        let regroup = Regroup::new(&bench.host, &vmms, bench.state());
        let report = regroup.apply(&plan, &mut |_| {
            let found = fs::metadata(&path).unwrap();
            if length == 0 {
                reserved = found.blocks() * 512;
            }
            length = found.len();
        });
        let report = report.unwrap();
        assert!(length <= reserved, "{length} bytes, {reserved} reserved");
        let kept = fs::metadata(&report.journal).unwrap();
        assert_eq!(kept.len(), length, "write {write}");
        assert!(kept.blocks() * 512 < reserved, "the rest is released");
    }
}
