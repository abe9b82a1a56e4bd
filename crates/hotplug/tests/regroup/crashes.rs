//! Processes that are killed, machines that are started anew, and what `recover` makes of it. Every moment of it is
//! in `explore`.

use std::fs;

use hotplug::regroup::{Outcome, Report, Vmm};
use iommu_group::Plan;

use crate::guests::Guest;
use crate::machine::{Fault, Snapshot};
use crate::{A, B, Bench, C, D, brief, killed, sbdf};

/// What a host is like before and after, found out on one where nothing goes wrong.
struct Ways {
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

/// The reverse: the old state is one that no kernel makes by itself.
fn split() -> (Bench, Plan) {
    let bench = Bench::new();
    bench.apply(&bench.join(&[A, B, C]), &[]).unwrap();
    let plan = bench.isolate(&[C]);
    (bench, plan)
}

/// The same under a kernel that hands out what it finds.
fn join_6_12() -> (Bench, Plan) {
    let bench = Bench::with("lab/edu-four-ports.json", "6.12.95");
    let plan = bench.join(&[A, B, D]);
    (bench, plan)
}

fn guest() -> Guest {
    Guest::new("web", &[sbdf(A), sbdf(B), sbdf(C), sbdf(D)])
}

fn ways(setting: Setting) -> Ways {
    let (bench, plan) = setting();
    let old = bench.machine.snapshot();
    let guest = guest();
    bench.machine.fail(usize::MAX, Fault::KilledBefore);
    let report = bench.apply(&plan, &[&guest as &dyn Vmm]).unwrap();
    assert_eq!(report.outcome, Outcome::New, "{report:#?}");
    let journal = fs::read_to_string(report.journal).unwrap();
    Ways {
        old,
        new: bench.machine.snapshot(),
        records: journal.lines().count(),
        writes: bench.machine.written(),
    }
}

/// Recovers, and expects either the old or the new state with everything where it was.
fn check(bench: &Bench, guest: &Guest, ways: &Ways, what: &str) -> Outcome {
    let report = bench.recover(&[guest as &dyn Vmm]);
    let what = format!("{what}: {}", brief(report.as_ref()));
    let now = bench.machine.snapshot();
    let outcome = report
        .as_ref()
        .map_or(Outcome::Old, |report| report.outcome);
    let wanted = match outcome {
        Outcome::New => &ways.new,
        Outcome::Old => &ways.old,
        Outcome::Rebooted => panic!("{what}"),
    };
    assert_eq!(now.differences(wanted), [""; 0], "{what}");
    let remains = report.map_or(Vec::new(), |report: Report| report.remains);
    assert_eq!(remains, [], "{what}");
    assert_eq!(guest.has().len(), 4, "{what}: the guest has its devices");
    assert_eq!(bench.recover(&[]), None, "{what}: that was all");
    outcome
}

#[test]
fn a_record_that_was_not_written_to_its_end_is_cut_off() {
    for setting in [join, split, join_6_12] {
        let ways = ways(setting);
        for write in (0..ways.writes).step_by(6) {
            let (bench, plan) = setting();
            let guest = guest();
            bench.machine.fail(write, Fault::KilledAfter);
            assert!(killed(|| {
                bench.apply(&plan, &[&guest as &dyn Vmm]).unwrap();
            }));
            bench.machine.failed();
            let path = bench.state().path().join("running.jsonl");
            let mut text = fs::read(&path).unwrap();
            text.extend(b"{\"at_ms\":17,\"record\":\"succ");
            fs::write(&path, text).unwrap();
            check(&bench, &guest, &ways, &format!("after write {write}"));
        }
    }
}

#[test]
fn a_journal_that_was_not_even_begun_is_nothing() {
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
fn after_a_reboot_nothing_is_written_and_what_is_different_is_said() {
    let ways = ways(split);
    for record in (0..ways.records).step_by(4) {
        let (bench, plan) = split();
        assert!(bench.apply_until(&plan, &[&guest() as &dyn Vmm], record));
        bench.machine.reboot();
        let booted = bench.machine.snapshot();
        bench.machine.fail(0, Fault::Errno(5));
        let report = bench.recover(&[]).unwrap();
        assert!(!bench.machine.failed(), "nothing is written");
        assert_eq!(report.outcome, Outcome::Rebooted);
        assert_eq!(bench.machine.snapshot(), booted);
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
