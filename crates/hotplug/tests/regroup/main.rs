//! Transactions on simulated hosts: completed, failed, interrupted.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::indexing_slicing, reason = "a test fails by panicking")]
#![allow(clippy::panic, reason = "a test fails by panicking")]

mod blockers;
mod crashes;
mod drift;
mod explore;
mod exposed;
mod failures;
mod fake_host;
mod faults;
mod guests;
mod recovery;
mod resets;
mod silent;
mod whole;

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use fake_host::{FakeHost, Killed};
use faults::Faults;
use hotplug::regroup::{Regroup, RegroupError, Report, StateDir, Vmm};
use iommu_group::{Goals, Kernel, Plan, PlanOptions, Sbdf};
use tempfile::TempDir;

pub(crate) const A: &str = "0000:03:00.0";
pub(crate) const B: &str = "0000:04:00.0";
pub(crate) const C: &str = "0000:05:00.0";
pub(crate) const D: &str = "0000:06:00.0";

pub(crate) fn sbdf(text: &str) -> Sbdf {
    text.parse().unwrap()
}

pub(crate) fn set(functions: &[&str]) -> BTreeSet<Sbdf> {
    functions.iter().map(|text| sbdf(text)).collect()
}

/// A host with its own state directory.
pub(crate) struct Bench {
    pub(crate) host: FakeHost,
    state: TempDir,
    faults: Option<Faults>,
}

impl Bench {
    /// The four endpoints of a switch whose ports have ACS, under a current kernel.
    pub(crate) fn new() -> Self {
        Self::with("switch-four-nvme.json", "7.2.12")
    }

    pub(crate) fn with(fixture: &str, release: &str) -> Self {
        Self::of(FakeHost::new(fixture, release, |_| {}))
    }

    /// Two of the four endpoints, and the functions above them.
    pub(crate) fn small(fixture: &str, release: &str) -> Self {
        Self::of(FakeHost::new(fixture, release, |document| {
            let functions = document["functions"].as_object_mut().unwrap();
            let others = ["0000:02:02.0", "0000:02:03.0", C, D];
            let others = |at: &str| others.contains(&at) || at.starts_with("0000:00:1");
            functions.retain(|at, _| !others(at));
        }))
    }

    /// The same with a virtual function of the last endpoint.
    pub(crate) fn with_virtual_function() -> Self {
        let host = FakeHost::new("switch-four-nvme.json", "7.2.12", |document| {
            let functions = &mut document["functions"];
            let mut function = functions[D].clone();
            function["physical_function"] = D.into();
            function["iommu_group"] = 99.into();
            // Its configuration space has no IDs.
            let header = function["config"]["000"].as_str().unwrap().to_owned();
            function["config"]["000"] = format!("ffffffff{}", &header[8..]).into();
            function["known_as"] = serde_json::json!({
                "vendor": "1b36", "device": "0010", "subsystem_vendor": "0000",
                "subsystem_device": "0000", "class": "010802",
            });
            functions["0000:06:10.0"] = function;
        });
        Self::of(host)
    }

    fn of(host: FakeHost) -> Self {
        Self {
            host,
            state: memory_dir(),
            faults: None,
        }
    }

    pub(crate) fn state(&self) -> StateDir {
        match &self.faults {
            Some(faults) => StateDir::on(self.state.path(), Arc::new(faults.clone())),
            None => StateDir::new(self.state.path()),
        }
    }

    /// Uses this fault injection from now on.
    pub(crate) fn watch(&mut self, faults: &Faults) {
        self.host.watch(faults);
        self.faults = Some(faults.clone());
    }

    pub(crate) fn plan(&self, goals: &Goals, options: &PlanOptions) -> Plan {
        let topology = self.host.topology();
        Plan::make(&topology, &Kernel::of(&topology), goals, options).unwrap()
    }

    /// A plan to join functions that accepts all its effects.
    pub(crate) fn join(&self, functions: &[&str]) -> Plan {
        self.hand_over(functions, &[])
    }

    /// A plan to join some functions and isolate others: below an upstream port there is only one group of joined
    /// functions.
    pub(crate) fn hand_over(&self, to: &[&str], from: &[&str]) -> Plan {
        let goals = Goals {
            join: vec![set(to)],
            isolate: set(from),
            ..Goals::default()
        };
        self.plan(&goals, &accept_all())
    }

    /// A plan to isolate functions that accepts all its effects.
    pub(crate) fn isolate(&self, functions: &[&str]) -> Plan {
        let goals = Goals {
            isolate: set(functions),
            ..Goals::default()
        };
        self.plan(&goals, &accept_all())
    }

    pub(crate) fn apply(&self, plan: &Plan, vmms: &[&dyn Vmm]) -> Result<Report, RegroupError> {
        Regroup::new(&self.host, vmms, self.state()).apply(plan, &mut |_| {})
    }

    pub(crate) fn recover(&self, vmms: &[&dyn Vmm]) -> Option<Report> {
        let regroup = Regroup::new(&self.host, vmms, self.state());
        regroup.recover(&mut |_| {}).unwrap().report
    }

    /// Applies a plan in a process that is killed after the record with this number, from 0, was written.
    pub(crate) fn apply_until(&self, plan: &Plan, vmms: &[&dyn Vmm], records: usize) -> bool {
        let mut count = 0;
        killed(|| {
            let regroup = Regroup::new(&self.host, vmms, self.state());
            let result = regroup.apply(plan, &mut |_| {
                if count == records {
                    std::panic::resume_unwind(Box::new(Killed));
                }
                count += 1;
            });
            result.unwrap();
        })
    }
}

/// A directory in memory if possible, because thousands of records are synced.
pub(crate) fn memory_dir() -> TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| tempfile::tempdir().unwrap())
}

/// Short text of a report.
pub(crate) fn brief(report: Option<&Report>) -> String {
    let Some(report) = report else {
        return "nothing to recover".to_owned();
    };
    let remains: Vec<String> = report.remains.iter().map(ToString::to_string).collect();
    format!(
        "{:?}, failed {:?}, remains {remains:#?}",
        report.outcome, report.failure
    )
}

pub(crate) fn accept_all() -> PlanOptions {
    PlanOptions {
        expose: set(&[A, B, C, D]),
        with: set(&[A, B, C, D]),
        ..PlanOptions::default()
    }
}

/// Whether a process is killed while it runs `what`.
pub(crate) fn killed(what: impl FnOnce()) -> bool {
    let result = catch_unwind(AssertUnwindSafe(what));
    match result {
        Ok(()) => false,
        Err(panic) if panic.is::<Killed>() => true,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}
