//! Recovery on hosts that are not as the journal says, and with journals that are not as they were written.

use std::fs;
use std::os::unix::ffi::OsStrExt;

use hotplug::regroup::{Action, Difference, Outcome, Record, Regroup, ResetOrder, Vmm};
use iommu_group::Plan;

use crate::guests::{Guest, Mood};
use crate::machine::{Fault, Killed, Machine};
use crate::{A, B, Bench, C, D, brief, killed, sbdf};

/// A port above `A`, whose ACS control a join of `A` changes.
const PORT: &str = "0000:02:00.0";

/// A process that is killed just before an action that `is` picks.
fn killed_before(bench: &Bench, plan: &Plan, vmms: &[&dyn Vmm], is: impl Fn(&Action) -> bool) {
    let regroup = Regroup::new(&bench.machine, vmms, bench.state());
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
fn nothing_is_written_to_another_device_in_a_ports_place() {
    let bench = Bench::new();
    let plan = bench.join(&[A, B]);
    killed_before(&bench, &plan, &[], is_rescan);
    for port in [PORT, A] {
        bench.machine.replace(sbdf(port));
    }
    let report = bench.recover(&[]).unwrap();
    assert_eq!(*bench.machine.strayed.borrow(), [""; 0], "{report:#?}");
    for function in [PORT, A].map(sbdf) {
        let replaced = Difference::Replaced { function };
        assert!(report.remains.contains(&replaced), "{report:#?}");
    }
    assert!(!is_open(&bench), "nothing more can be done");
}

#[test]
fn a_device_in_anothers_place_is_given_to_no_guest() {
    let bench = Bench::new();
    let guest = Guest::new("web", &[sbdf(A), sbdf(B)]);
    let plan = bench.join(&[A, B]);
    killed_before(&bench, &plan, &[&guest], is_rescan);
    bench.machine.replace(sbdf(A));
    bench.recover(&[&guest]);
    assert_eq!(guest.has(), [sbdf(B)]);
    assert_eq!(*bench.machine.strayed.borrow(), [""; 0]);
}

#[test]
fn a_reset_whose_port_has_gone_or_is_another_blocks_nothing() {
    for change in [Machine::pull, Machine::replace] {
        let bench = Bench::new();
        bench.apply(&bench.join(&[A, B]), &[]).unwrap();
        let order = ResetOrder {
            function: sbdf(A),
            kinds: "bus+slot".parse().unwrap(),
            owned: crate::set(&[PORT]),
        };
        // Before anything is put right.
        bench.machine.fail(1, Fault::KilledAfter);
        assert!(killed(|| {
            let regroup = Regroup::new(&bench.machine, &[], bench.state());
            drop(regroup.reset(&order));
        }));
        bench.machine.failed();
        change(&bench.machine, sbdf(PORT));
        bench.recover(&[]);
        assert_eq!(*bench.machine.strayed.borrow(), [""; 0]);
        assert!(!bench.state().path().join("reset.json").exists());
    }
}

#[test]
fn a_record_that_was_changed_is_not_believed() {
    let bench = Bench::new();
    let plan = bench.join(&[A, B]);
    let guest = Guest::new("web", &[sbdf(A), sbdf(B)]);
    killed_before(&bench, &plan, &[&guest], is_rescan);
    let path = bench.state().path().join("running.jsonl");
    // Of what the ports were, as a failing disk might have it.
    let text = fs::read_to_string(&path).unwrap();
    let (first, rest) = text.split_once('\n').unwrap();
    let changed = first.replace("\"control\":\"001d\"", "\"control\":\"005f\"");
    assert_ne!(changed, first);
    fs::write(&path, format!("{changed}\n{rest}")).unwrap();
    let before = bench.machine.snapshot();
    let vmms = [&guest as &dyn Vmm];
    let regroup = Regroup::new(&bench.machine, &vmms, bench.state());
    let error = regroup.recover(&mut |_| {}).unwrap_err().to_string();
    assert!(error.contains("line 1: "), "{error}");
    assert_eq!(bench.machine.snapshot().differences(&before), [""; 0]);
}

#[test]
fn what_others_put_into_the_history_does_no_harm() {
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
    let regroup = Regroup::new(&bench.machine, &[], bench.state());
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
fn a_second_join_that_was_killed_is_undone() {
    for second in [[A, B], [C, D], [A, C]] {
        let bench = Bench::new();
        bench.apply(&bench.join(&[A, B]), &[]).unwrap();
        // Ports that have lost their devices stay in one group.
        bench.apply(&bench.isolate(&[A, B]), &[]).unwrap();
        let before = bench.machine.snapshot();
        killed_before(&bench, &bench.join(&second), &[], is_rescan);
        let report = bench.recover(&[]).unwrap();
        let what = format!("{second:?}: {}", brief(Some(&report)));
        assert_eq!(report.outcome, Outcome::Old, "{what}");
        let now = bench.machine.snapshot();
        assert_eq!(now.differences(&before), [""; 0], "{what}");
        assert_eq!(report.remains, [], "{what}");
    }
}

#[test]
fn a_journal_stays_open_until_every_device_is_back() {
    let bench = Bench::new();
    let before = bench.machine.snapshot();
    let guest = Guest::new("web", &[sbdf(A), sbdf(B)]);
    let plan = bench.join(&[A, B]);
    killed_before(&bench, &plan, &[&guest], is_rescan);
    // By a process that does not know the VM.
    let unfinished = bench.state().status("first").unwrap().unfinished.unwrap();
    let socket = &unfinished.vms["web"].socket;
    assert_eq!(socket.to_str(), Some("/run/web.sock"));
    let report = bench.recover(&[]).unwrap();
    assert_eq!(guest.has(), []);
    assert!(is_open(&bench), "{}", brief(Some(&report)));
    let told: Vec<String> = report.remains.iter().map(ToString::to_string).collect();
    assert_eq!(
        told,
        [A, B].map(|it| format!("web does not have {it} back"))
    );
    assert_eq!(bench.machine.snapshot().differences(&before), [""; 0]);
    // Its VM does not take them, and at last does.
    *guest.mood.lock().unwrap() = Mood::Refuses;
    assert_eq!(bench.recover(&[&guest]).unwrap().remains.len(), 2);
    assert!(is_open(&bench));
    *guest.mood.lock().unwrap() = Mood::Willing;
    assert_eq!(bench.recover(&[&guest]).unwrap().remains, []);
    assert_eq!(guest.has(), [sbdf(A), sbdf(B)]);
    assert!(!is_open(&bench));
}

#[test]
fn after_the_commit_a_journal_stays_open_too_until_every_device_is_back() {
    let bench = Bench::new();
    let guest = Guest::new("web", &[sbdf(A), sbdf(B)]);
    let plan = bench.join(&[A, B]);
    killed_before(&bench, &plan, &[&guest], is_bind);
    let report = bench.recover(&[]).unwrap();
    assert!(is_open(&bench), "{}", brief(Some(&report)));
    assert_eq!(bench.recover(&[&guest]).unwrap().remains, []);
    assert_eq!(guest.has(), [sbdf(A), sbdf(B)]);
}
