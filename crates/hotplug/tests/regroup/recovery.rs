//! Recovery on hosts that differ from the journal, and with damaged journals.

use std::fs;
use std::os::unix::ffi::OsStrExt;

use hotplug::regroup::{Action, Difference, Outcome, Record, Regroup, ResetOrder, Vmm};
use iommu_group::Plan;

use crate::fake_host::{FakeHost, Killed, WriteFault};
use crate::guests::{Behaviour, Guest};
use crate::{A, B, Bench, C, D, brief, killed, sbdf};

/// A port above `A`, whose ACS control a join of `A` changes.
const PORT: &str = "0000:02:00.0";

/// Runs a process that is killed just before an action that `is` selects.
fn killed_before(bench: &Bench, plan: &Plan, vmms: &[&dyn Vmm], is: impl Fn(&Action) -> bool) {
    let regroup = Regroup::new(&bench.host, vmms, bench.state());
    let died = killed(|| {
        let result = regroup.apply(plan, &mut |progress| {
            let started = matches!(progress.record, Record::Started { .. });
            if started && progress.action.is_some_and(&is) {
                std::panic::resume_unwind(Box::new(Killed));
            }
        });
        result.unwrap();
    });
    assert!(died, "there is such an action");
}

fn is_bind(action: &Action) -> bool {
    matches!(action, Action::Bind { function, .. } if *function == sbdf(A))
}

fn is_rescan(action: &Action) -> bool {
    matches!(action, Action::Rescan { .. })
}

fn is_open(bench: &Bench) -> bool {
    bench.state().path().join("running.jsonl").exists()
}

#[test]
fn a_device_that_replaced_a_port_is_not_written_to() {
    let bench = Bench::new();
    let plan = bench.join(&[A, B]);
    killed_before(&bench, &plan, &[], is_rescan);
    for port in [PORT, A] {
        bench.host.replace(sbdf(port));
    }
    let report = bench.recover(&[]).unwrap();
    assert_eq!(*bench.host.strayed.borrow(), [""; 0], "{report:#?}");
    for function in [PORT, A].map(sbdf) {
        let replaced = Difference::Replaced { function };
        assert!(report.remains.contains(&replaced), "{report:#?}");
    }
    assert!(!is_open(&bench), "no more can be restored");
}

#[test]
fn a_replacement_device_is_given_to_no_guest() {
    let bench = Bench::new();
    let guest = Guest::new("web", &[sbdf(A), sbdf(B)]);
    let plan = bench.join(&[A, B]);
    killed_before(&bench, &plan, &[&guest], is_rescan);
    bench.host.replace(sbdf(A));
    bench.recover(&[&guest]);
    assert_eq!(guest.has(), [sbdf(B)]);
    assert_eq!(*bench.host.strayed.borrow(), [""; 0]);
}

#[test]
fn an_interrupted_reset_of_a_missing_port_blocks_nothing() {
    for change in [FakeHost::pull, FakeHost::replace] {
        let bench = Bench::new();
        bench.apply(&bench.join(&[A, B]), &[]).unwrap();
        let order = ResetOrder {
            function: sbdf(A),
            kinds: "bus+slot".parse().unwrap(),
            owned: crate::set(&[PORT]),
        };
        // Killed before the restoration.
        bench.host.fail(1, WriteFault::KilledAfter);
        assert!(killed(|| {
            let regroup = Regroup::new(&bench.host, &[], bench.state());
            drop(regroup.reset(&order));
        }));
        bench.host.failed();
        change(&bench.host, sbdf(PORT));
        bench.recover(&[]);
        assert_eq!(*bench.host.strayed.borrow(), [""; 0]);
        assert!(!bench.state().path().join("reset.json").exists());
    }
}

#[test]
fn a_changed_record_is_refused() {
    let bench = Bench::new();
    let plan = bench.join(&[A, B]);
    let guest = Guest::new("web", &[sbdf(A), sbdf(B)]);
    killed_before(&bench, &plan, &[&guest], is_rescan);
    let path = bench.state().path().join("running.jsonl");
    // A change of the recorded ports, as by a failing disk.
    let text = fs::read_to_string(&path).unwrap();
    let (first, rest) = text.split_once('\n').unwrap();
    let changed = first.replace("\"control\":\"001d\"", "\"control\":\"005f\"");
    assert_ne!(changed, first);
    fs::write(&path, format!("{changed}\n{rest}")).unwrap();
    let before = bench.host.snapshot();
    let vmms = [&guest as &dyn Vmm];
    let regroup = Regroup::new(&bench.host, &vmms, bench.state());
    let error = regroup.recover(&mut |_| {}).unwrap_err().to_string();
    assert!(error.contains("line 1: "), "{error}");
    assert_eq!(bench.host.snapshot().differences(&before), [""; 0]);
}

#[test]
fn foreign_files_in_the_history_are_ignored() {
    let bench = Bench::new();
    let first = bench.apply(&bench.join(&[A, B]), &[]).unwrap();
    let journal = fs::read(&first.journal).unwrap();
    let done = bench.state().path().join("done");
    for name in [
        "zzz.jsonl",
        "000001.old.jsonl",
        "99999999999999999999.jsonl",
    ] {
        fs::write(done.join(name), b"\xff\xfe not UTF-8\n").unwrap();
    }
    fs::write(done.join(std::ffi::OsStr::from_bytes(b"\xff.jsonl")), "").unwrap();
    fs::write(done.join("000007.jsonl"), b"\xff\xfe not UTF-8\n").unwrap();
    let plan = bench.isolate(&[A, B]);
    let regroup = Regroup::new(&bench.host, &[], bench.state());
    assert_eq!(regroup.check(&plan).unwrap().blockers, []);
    let second = bench.apply(&plan, &[]).unwrap();
    assert_eq!(
        (first.id.as_str(), second.id.as_str()),
        ("000001", "000008")
    );
    assert_eq!(
        fs::read(&first.journal).unwrap(),
        journal,
        "it is as it was"
    );
}

#[test]
fn a_killed_second_join_is_undone() {
    for second in [[A, B], [C, D], [A, C]] {
        let bench = Bench::new();
        bench.apply(&bench.join(&[A, B]), &[]).unwrap();
        // Ports without devices stay in one group.
        bench.apply(&bench.isolate(&[A, B]), &[]).unwrap();
        let before = bench.host.snapshot();
        killed_before(&bench, &bench.join(&second), &[], is_rescan);
        let report = bench.recover(&[]).unwrap();
        let what = format!("{second:?}: {}", brief(Some(&report)));
        assert_eq!(report.outcome, Outcome::Old, "{what}");
        let now = bench.host.snapshot();
        assert_eq!(now.differences(&before), [""; 0], "{what}");
        assert_eq!(report.remains, [], "{what}");
    }
}

#[test]
fn a_journal_stays_open_until_every_device_is_back() {
    let bench = Bench::new();
    let before = bench.host.snapshot();
    let guest = Guest::new("web", &[sbdf(A), sbdf(B)]);
    let plan = bench.join(&[A, B]);
    killed_before(&bench, &plan, &[&guest], is_rescan);
    // Recovery by a process that does not know the VM.
    let unfinished = bench.state().status("first").unwrap().unfinished.unwrap();
    let socket = &unfinished.vms["web"].socket;
    assert_eq!(socket.to_str(), Some("/run/web.sock"));
    let report = bench.recover(&[]).unwrap();
    assert_eq!(guest.has(), []);
    assert!(is_open(&bench), "{}", brief(Some(&report)));
    let remains: Vec<String> = report.remains.iter().map(ToString::to_string).collect();
    assert_eq!(
        remains,
        [A, B].map(|it| format!("{it} is not back in VM web"))
    );
    assert_eq!(bench.host.snapshot().differences(&before), [""; 0]);
    // The VM refuses the devices at first, and then takes them.
    *guest.behaviour.lock().unwrap() = Behaviour::Refuses;
    assert_eq!(bench.recover(&[&guest]).unwrap().remains.len(), 2);
    assert!(is_open(&bench));
    *guest.behaviour.lock().unwrap() = Behaviour::Willing;
    assert_eq!(bench.recover(&[&guest]).unwrap().remains, []);
    assert_eq!(guest.has(), [sbdf(A), sbdf(B)]);
    assert!(!is_open(&bench));
}

#[test]
fn a_journal_stays_open_after_the_commit_until_every_device_is_back() {
    let bench = Bench::new();
    let guest = Guest::new("web", &[sbdf(A), sbdf(B)]);
    let plan = bench.join(&[A, B]);
    killed_before(&bench, &plan, &[&guest], is_bind);
    let report = bench.recover(&[]).unwrap();
    assert!(is_open(&bench), "{}", brief(Some(&report)));
    assert_eq!(bench.recover(&[&guest]).unwrap().remains, []);
    assert_eq!(guest.has(), [sbdf(A), sbdf(B)]);
}
