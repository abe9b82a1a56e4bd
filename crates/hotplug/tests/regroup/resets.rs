//! Resets of a chosen kind.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;

use hotplug::regroup::{Outcome, Regroup, RegroupError, ResetDone, ResetOrder, Vmm};
use iommu_group::ResetKind;

use crate::fake_host::WriteFault;
use crate::guests::Guest;
use crate::{A, B, Bench, killed, sbdf, set};

/// The port above the switch with all devices.
const PORT: &str = "0000:00:04.0";

fn order(function: &str, kinds: &str, owned: &[&str]) -> ResetOrder {
    ResetOrder {
        function: sbdf(function),
        kinds: kinds.parse().unwrap(),
        owned: set(owned),
    }
}

fn reset(bench: &Bench, vmms: &[&dyn Vmm], order: &ResetOrder) -> Result<ResetDone, RegroupError> {
    Regroup::new(&bench.host, vmms, bench.state()).reset(order)
}

/// The reasons of a refusal. Checks that nothing was done.
fn refused(bench: &Bench, vmms: &[&dyn Vmm], order: &ResetOrder) -> Vec<String> {
    let before = bench.host.snapshot();
    bench.host.fail(0, WriteFault::Errno(5));
    let result = reset(bench, vmms, order);
    assert!(!bench.host.failed(), "nothing was written");
    assert_eq!(bench.host.snapshot(), before);
    match result {
        Err(RegroupError::Refused(refusal)) => {
            refusal.blockers.iter().map(ToString::to_string).collect()
        }
        other => panic!("it was not refused: {other:?}"),
    }
}

/// All functions below the port.
fn all_below(bench: &Bench) -> BTreeSet<iommu_group::Sbdf> {
    let topology = bench.host.topology();
    let below = topology.descendants(sbdf(PORT));
    below.map(iommu_group::Function::sbdf).collect()
}

#[test]
fn a_function_is_reset_by_the_requested_kind_only() {
    let bench = Bench::new();
    let before = bench.host.snapshot();
    let done = reset(&bench, &[], &order(A, "flr", &[])).unwrap();
    assert_eq!((done.kind, done.hits), (ResetKind::Flr, vec![sbdf(A)]));
    let done = reset(&bench, &[], &order(A, "bus+slot", &[])).unwrap();
    assert!(done.kind.is_link(), "{:?}", done.kind);
    let resets = bench.host.resets.borrow().clone();
    assert_eq!(resets, [format!("{A} flr"), format!("{A} bus")]);
    assert_eq!(bench.host.snapshot(), before, "reset_method too");
}

#[test]
fn a_missing_kind_is_refused() {
    let bench = Bench::new();
    let lines = refused(&bench, &[], &order(A, "acpi", &[]));
    let wanted =
        format!("{A} has no reset of kind acpi (those that it has: p2pctl reset-scope {A})");
    assert_eq!(lines, [wanted]);
}

#[test]
fn a_reset_that_hits_other_owners_is_refused_by_name() {
    let bench = Bench::new();
    let switch = "0000:01:00.0";
    let lines = refused(&bench, &[], &order(switch, "link", &[A]));
    let others = all_below(&bench).len() - 2;
    assert_eq!(lines.len(), others, "{lines:#?}");
    assert!(
        lines
            .iter()
            .any(|line| line.starts_with(&format!("{B} is not among the owned functions"))),
        "{lines:#?}"
    );
}

#[test]
fn functions_in_use_are_not_reset() {
    let bench = Bench::new();
    let guest = Guest::new("web", &[sbdf(A)]);
    let vmms = [&guest as &dyn Vmm];
    let lines = refused(&bench, &vmms, &order(A, "flr", &[]));
    assert_eq!(lines.len(), 1, "{lines:#?}");
    assert!(
        lines[0].starts_with(&format!("{A} is plugged in web")),
        "{lines:#?}"
    );
    let driver = bench.host.dir(sbdf(B)).join("driver");
    fs::remove_file(&driver).unwrap();
    symlink("../../../../bus/pci/drivers/nvme", driver).unwrap();
    let lines = refused(&bench, &vmms, &order(B, "flr", &[]));
    assert!(
        lines[0].starts_with(&format!("{B} is bound to nvme")),
        "{lines:#?}"
    );
}

#[test]
fn a_link_reset_restores_acs() {
    let bench = Bench::new();
    bench.apply(&bench.join(&[A, B]), &[]).unwrap();
    let before = bench.host.snapshot();
    let mut link = order("0000:01:00.0", "link", &[]);
    link.owned = all_below(&bench);
    let done = reset(&bench, &[], &link).unwrap();
    assert_eq!(*bench.host.resets.borrow(), [format!("below {PORT}")]);
    assert!(done.ports.len() >= 4, "{:?}", done.ports);
    assert_eq!(bench.host.snapshot(), before);
}

#[test]
fn a_crash_at_any_write_of_a_reset_is_recovered() {
    for write in 0.. {
        let bench = Bench::new();
        bench.apply(&bench.join(&[A, B]), &[]).unwrap();
        let before = bench.host.snapshot();
        bench.host.fail(write, WriteFault::KilledAfter);
        let died = killed(|| {
            reset(&bench, &[], &order(A, "bus+slot", &[])).unwrap();
        });
        let reached = bench.host.failed();
        assert_eq!(died, reached);
        if !reached {
            assert!(write > 2, "it writes more than that");
            return;
        }
        let plan = bench.isolate(&[A, B]);
        let Err(RegroupError::Refused(refusal)) = bench.apply(&plan, &[]) else {
            panic!("write {write}: the reset is not finished");
        };
        assert!(refusal.to_string().contains("reset.json"), "{refusal}");
        assert!(bench.recover(&[]).is_none());
        assert_eq!(bench.host.snapshot(), before, "write {write}");
        let report = bench.apply(&plan, &[]).unwrap();
        assert_eq!(report.outcome, Outcome::New);
    }
}
