//! Killed processes and reboots, and their recovery. `explore` covers every step.

use std::fs;

use hotplug::regroup::{Outcome, Report, Vmm};
use iommu_group::Plan;

use crate::fake_host::{Snapshot, WriteFault};
use crate::guests::Guest;
use crate::{A, B, Bench, C, D, brief, killed, sbdf};

/// Snapshots of a host before and after a transaction without faults.
struct Expected {
    old: Snapshot,
    new: Snapshot,
    records: usize,
    writes: usize,
}

type Setting = fn() -> (Bench, Plan);

fn join() -> (Bench, Plan) {
    let bench = Bench::new();
    let plan = bench.join(&[A, B]);
    (bench, plan)
}

/// The reverse: the kernel does not form the old state by itself.
fn split() -> (Bench, Plan) {
    let bench = Bench::new();
    bench.apply(&bench.join(&[A, B, C]), &[]).unwrap();
    let plan = bench.isolate(&[C]);
    (bench, plan)
}

/// The same under a kernel that binds drivers to everything that it finds.
fn join_6_12() -> (Bench, Plan) {
    let bench = Bench::with("lab/edu-four-ports.json", "6.12.95");
    let plan = bench.join(&[A, B, D]);
    (bench, plan)
}

fn guest() -> Guest {
    Guest::new("web", &[sbdf(A), sbdf(B), sbdf(C), sbdf(D)])
}

fn expected(setting: Setting) -> Expected {
    let (bench, plan) = setting();
    let old = bench.host.snapshot();
    let guest = guest();
    bench.host.fail(usize::MAX, WriteFault::KilledBefore);
    let report = bench.apply(&plan, &[&guest as &dyn Vmm]).unwrap();
    assert_eq!(report.outcome, Outcome::New, "{report:#?}");
    let journal = fs::read_to_string(report.journal).unwrap();
    Expected {
        old,
        new: bench.host.snapshot(),
        records: journal.lines().count(),
        writes: bench.host.written(),
    }
}

/// Recovers, and expects either the old or the new state with every device in its VM.
fn check(bench: &Bench, guest: &Guest, expected: &Expected, what: &str) -> Outcome {
    let report = bench.recover(&[guest as &dyn Vmm]);
    let what = format!("{what}: {}", brief(report.as_ref()));
    let now = bench.host.snapshot();
    let outcome = report
        .as_ref()
        .map_or(Outcome::Old, |report| report.outcome);
    let wanted = match outcome {
        Outcome::New => &expected.new,
        Outcome::Old => &expected.old,
        Outcome::Rebooted => panic!("{what}"),
    };
    assert_eq!(now.differences(wanted), [""; 0], "{what}");
    let remains = report.map_or(Vec::new(), |report: Report| report.remains);
    assert_eq!(remains, [], "{what}");
    assert_eq!(guest.has().len(), 4, "{what}: the guest has its devices");
    assert_eq!(guest.closed(), [], "{what}: peers reach them");
    assert_eq!(bench.recover(&[]), None, "{what}: that was all");
    outcome
}

#[test]
fn an_incomplete_record_is_cut_off() {
    for setting in [join, split, join_6_12] {
        let expected = expected(setting);
        for write in (0..expected.writes).step_by(6) {
            let (bench, plan) = setting();
            let guest = guest();
            bench.host.fail(write, WriteFault::KilledAfter);
            assert!(killed(|| {
                bench.apply(&plan, &[&guest as &dyn Vmm]).unwrap();
            }));
            bench.host.failed();
            let path = bench.state().path().join("running.jsonl");
            let mut text = fs::read(&path).unwrap();
            text.extend(b"{\"at_ms\":17,\"record\":\"succ");
            fs::write(&path, text).unwrap();
            check(&bench, &guest, &expected, &format!("after write {write}"));
        }
    }
}

/// One pair is joined and another isolated. Ports that are found again cannot always get into their old group, and
/// devices can.
#[test]
fn a_hand_over_that_is_killed_at_any_record_ends_in_the_old_or_the_new_groups_of_devices() {
    let hand_over: Setting = || {
        let bench = Bench::new();
        bench.apply(&bench.join(&[A, B]), &[]).unwrap();
        bench
            .apply(&bench.hand_over(&[C, D], &[A, B]), &[])
            .unwrap();
        let plan = bench.hand_over(&[A, B], &[C, D]);
        (bench, plan)
    };
    let expected = expected(hand_over);
    for record in 0..expected.records {
        let (bench, plan) = hand_over();
        let guest = guest();
        if !bench.apply_until(&plan, &[&guest as &dyn Vmm], record) {
            continue;
        }
        let report = bench.recover(&[&guest as &dyn Vmm]);
        let what = format!("record {record}: {}", brief(report.as_ref()));
        let wanted = match report.as_ref().map(|report| report.outcome) {
            Some(Outcome::New) => &expected.new,
            _ => &expected.old,
        };
        let (now, wanted) = (bench.host.snapshot(), wanted.with_devices_only());
        let differences = now.with_devices_only().differences(&wanted);
        assert_eq!(differences, [""; 0], "{what}");
        assert_eq!(
            report.map_or(Vec::new(), |report| report.remains),
            [],
            "{what}"
        );
        assert_eq!(guest.has().len(), 4, "{what}: the guest has its devices");
    }
}

#[test]
fn a_journal_without_records_is_discarded() {
    let (bench, plan) = join();
    fs::create_dir_all(bench.state().path()).unwrap();
    fs::write(
        bench.state().path().join("running.jsonl"),
        "{\"at_ms\":1,\"rec",
    )
    .unwrap();
    assert!(
        bench.apply(&plan, &[]).is_err(),
        "somebody has to look at it"
    );
    assert_eq!(bench.recover(&[]), None);
    assert_eq!(bench.apply(&plan, &[]).unwrap().outcome, Outcome::New);
}

#[test]
fn after_a_reboot_differences_are_reported_and_nothing_is_written() {
    let expected = expected(split);
    for record in (0..expected.records).step_by(4) {
        let (bench, plan) = split();
        assert!(bench.apply_until(&plan, &[&guest() as &dyn Vmm], record));
        bench.host.reboot();
        let booted = bench.host.snapshot();
        bench.host.fail(0, WriteFault::Errno(5));
        let report = bench.recover(&[]).unwrap();
        assert!(!bench.host.failed(), "nothing was written");
        assert_eq!(report.outcome, Outcome::Rebooted);
        assert_eq!(bench.host.snapshot(), booted);
        let told = report.remains.iter().map(ToString::to_string);
        let told: Vec<String> = told.collect();
        let group = format!("the group of {A} is {A}");
        assert!(
            told.iter().any(|line| line.starts_with(&group)),
            "{told:#?}"
        );
        let driver = format!("the driver of {C} is nvme, and was vfio-pci");
        assert!(told.contains(&driver), "{told:#?}");
        assert_eq!(bench.state().status("second").unwrap().held, []);
    }
}
