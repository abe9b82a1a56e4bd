//! A transaction from its beginning to its end.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use iommu_group::{AcsSetting, Plan, Sbdf, Topology};
use serde::{Deserialize, Serialize};

use super::acs_register::AcsRegister;
use super::action::Action;
use super::baseline::Baseline;
use super::blocker::{Blocker, Refusal};
use super::compile::script;
use super::difference::Difference;
use super::error::RegroupError;
use super::forecast::{Forecast, fits};
use super::host::{Host, HostError};
use super::machine::Machine;
use super::preflight::{Preflight, unwilling};
use super::record::{Begin, Outcome, Record, VERSION};
use super::state_dir::StateDir;
use super::vmm::{Assigned, VmAddress, Vmm};
use super::withheld::WithheldDevice;

/// How long a guest may take to let go of a device, unless it is said otherwise.
const GUEST: Duration = Duration::from_secs(30);

/// Who carries out plans on a host.
pub struct Regroup<'a> {
    host: &'a dyn Host,
    pub(super) vmms: &'a [&'a dyn Vmm],
    pub(super) state: StateDir,
    pub(super) deadline: Duration,
    stop: Option<&'a AtomicBool>,
    accepted: BTreeSet<Sbdf>,
}

/// What a transaction has just put on record.
#[derive(Debug, Clone, Copy)]
pub struct Progress<'a> {
    /// The record.
    pub record: &'a Record,
    /// The action that it is about.
    pub action: Option<&'a Action>,
}

/// How a transaction ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Report {
    /// The name of the transaction.
    pub id: String,
    /// The plan.
    pub plan: Plan,
    /// The state that the host is in.
    pub outcome: Outcome,
    /// What failed first, and how.
    pub failure: Option<(String, String)>,
    /// What is not as it was, where it should be.
    pub remains: Vec<Difference>,
    /// The devices that virtual machines had to let go of, as they had them.
    #[serde(default)]
    pub unplugged: Vec<Assigned>,
    /// For how many milliseconds they were without them; none if they have not got them back.
    #[serde(default)]
    pub away_ms: Option<u64>,
    /// The journal.
    pub journal: PathBuf,
    /// Why the journal does not say all that happened.
    #[serde(default)]
    pub unrecorded: Option<String>,
    /// Why the transaction is not over, and has to be recovered once more.
    #[serde(default)]
    pub open: Option<String>,
}

/// Told of everything that is put on record.
pub(super) type Observer<'o> = dyn FnMut(&Progress<'_>) + 'o;

impl<'a> Regroup<'a> {
    /// For a host with these virtual machines, with journals in a state directory.
    pub fn new(host: &'a dyn Host, vmms: &'a [&'a dyn Vmm], state: StateDir) -> Self {
        Self {
            host,
            vmms,
            state,
            deadline: GUEST,
            stop: None,
            accepted: BTreeSet::new(),
        }
    }

    /// Gives guests this long to let go of a device.
    #[must_use]
    pub fn guest_deadline(self, deadline: Duration) -> Self {
        Self { deadline, ..self }
    }

    /// Undoes a change, as soon as this is `true`, of which groups and routes are not as planned yet; one that has come
    /// further comes to its end.
    #[must_use]
    pub fn until(self, stop: &'a AtomicBool) -> Self {
        Self {
            stop: Some(stop),
            ..self
        }
    }

    /// Accepts for all plans that these are reachable without the IOMMU.
    #[must_use]
    pub fn accepting(self, accepted: BTreeSet<Sbdf>) -> Self {
        Self { accepted, ..self }
    }

    pub(super) fn machine(&self) -> Machine<'a> {
        Machine::new(self.host)
    }

    /// What carrying out a plan would mean now. Changes nothing.
    pub fn check(&self, plan: &Plan) -> Result<Forecast, RegroupError> {
        let topology = self.machine().scan()?;
        let mut preflight = self.preflight(&topology, plan)?;
        preflight.blockers.splice(0..0, self.unfinished());
        let mut forecast = Forecast::new(&topology, plan, preflight);
        if fits(&forecast.blockers) {
            let (plug, staying) = (&forecast.plug, &forecast.staying);
            let unwilling = unwilling(self.vmms, &topology, plan, plug, staying);
            forecast.blockers.extend(unwilling);
        }
        Ok(forecast.with_last(self.state.last_away()?))
    }

    fn preflight(&self, topology: &Topology, plan: &Plan) -> Result<Preflight, HostError> {
        Preflight::of(self.machine(), topology, plan, self.vmms, &self.accepted)
    }

    pub(super) fn unfinished(&self) -> Vec<Blocker> {
        [self.state.running(), self.state.resetting()]
            .into_iter()
            .filter(|journal| journal.exists())
            .map(|journal| Blocker::Unfinished { journal })
            .collect()
    }

    /// Carries out a plan, or puts everything back if that fails.
    pub fn apply(&self, plan: &Plan, observer: &mut Observer<'_>) -> Result<Report, RegroupError> {
        let lock = self.state.lock()?;
        let machine = self.machine();
        let topology = machine.scan()?;
        let preflight = self.preflight(&topology, plan)?;
        let mut blockers = self.unfinished();
        blockers.extend(preflight.blockers);
        if !blockers.is_empty() {
            return Err(Refusal { blockers }.into());
        }
        let boot = machine.boot_id()?;
        let held = self.state.held(&boot)?;
        let vms = addresses(self.vmms, &preflight.assigned);
        let assigned = preflight.assigned;
        let mut baseline = Baseline::take(machine, &topology, plan, &held.ports, assigned)?;
        baseline.exposed = preflight.exposed;
        let expose = &preflight.expose;
        let script = script(&baseline, &topology, plan, &preflight.staying, expose);
        let (homecoming, staying) = (&script.homecoming, &preflight.staying);
        let blockers = unwilling(self.vmms, &topology, plan, homecoming, staying);
        if !blockers.is_empty() {
            return Err(Refusal { blockers }.into());
        }
        let begin = Begin {
            version: VERSION,
            id: String::new(),
            boot,
            plan: plan.clone(),
            vms,
            baseline,
            actions: script.actions,
            commit: script.commit,
        };
        self.state.prepare_held(&held.after(&begin.baseline))?;
        let mut journal = self.state.begin(begin)?;
        observer(&Progress {
            record: &Record::Begin(Box::new(journal.begin().clone())),
            action: None,
        });
        let report = self.drive(&mut journal, observer);
        drop(lock);
        report
    }

    /// What the kernel calls this start of the machine.
    pub fn boot_id(&self) -> Result<String, HostError> {
        self.machine().boot_id()
    }

    /// The ports that are kept awake for what earlier transactions have set.
    pub fn held(&self) -> Result<BTreeSet<Sbdf>, RegroupError> {
        let held = self.state.held(&self.boot_id()?)?;
        Ok(held.ports.into_keys().collect())
    }

    /// The devices that are kept from their VMs until a check of the host allows them to come back.
    pub fn withheld(&self) -> Result<Vec<WithheldDevice>, RegroupError> {
        Ok(self.state.held(&self.boot_id()?)?.devices)
    }

    /// Notes that a device is kept from its VM.
    pub fn withhold(&self, device: &WithheldDevice) -> Result<(), RegroupError> {
        Ok(self.state.withhold(&self.boot_id()?, device)?)
    }

    /// Notes that a device is not kept from its VM any more.
    pub fn release(&self, vm: &str, id: &str) -> Result<(), RegroupError> {
        Ok(self.state.release(&self.boot_id()?, vm, id)?)
    }

    /// Writes the ACS registers of a port that somebody else has written, unless a transaction is under way or
    /// the port is another one now. `false` if it was not wanted any more when no transaction could begin.
    pub fn write_acs(
        &self,
        register: &AcsRegister,
        setting: &AcsSetting,
        is_wanted: impl FnOnce() -> bool,
    ) -> Result<bool, RegroupError> {
        let lock = self.state.lock()?;
        let written = is_wanted();
        if written {
            self.write_acs_beside(register, setting)?;
        }
        drop(lock);
        Ok(written)
    }

    /// The same while a transaction of this process is under way, which must not touch the port.
    pub fn write_acs_beside(
        &self,
        register: &AcsRegister,
        setting: &AcsSetting,
    ) -> Result<(), RegroupError> {
        let port = register.port();
        let Some(found) = register.read(self.host.sysfs()) else {
            return Err(HostError::Gone { function: port }.into());
        };
        // First the vector: egress control that is switched on must not go by another one.
        let vector = setting
            .egress()
            .filter(|_| found.egress() != setting.egress());
        if let Some(vector) = vector {
            let at = register.vector_at();
            self.machine().set_egress(port, at, &vector)?;
        }
        self.machine()
            .set_acs_control(port, register.control_at(), setting.control())?;
        Ok(())
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stop.is_some_and(|stop| stop.load(Ordering::Acquire))
    }
}

/// How the virtual machines are reached that have these devices.
fn addresses(vmms: &[&dyn Vmm], assigned: &[Assigned]) -> BTreeMap<String, VmAddress> {
    let concerned = |name: &str| assigned.iter().any(|device| device.vm == name);
    let vmms = vmms.iter().filter(|vmm| concerned(vmm.name()));
    vmms.filter_map(|vmm| Some((vmm.name().to_owned(), vmm.address()?)))
        .collect()
}
