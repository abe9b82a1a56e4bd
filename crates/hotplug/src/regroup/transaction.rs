//! Transactions from start to end.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use iommu_group::{AcsSetting, Plan, Sbdf};
use serde::{Deserialize, Serialize};

use super::acs_register::AcsRegister;
use super::action::Action;
use super::blocker::{Blocker, Refusal};
use super::difference::Difference;
use super::error::RegroupError;
use super::forecast::Forecast;
use super::host::{Host, HostError};
use super::lowering::program;
use super::preflight::Preflight;
use super::preview::Preview;
use super::record::{Begin, Outcome, Record, VERSION};
use super::snapshot::Snapshot;
use super::state_dir::StateDir;
use super::sysfs_ops::SysfsOps;
use super::vmm::{VmAddress, VmDevice, Vmm};
use super::withheld::WithheldDevice;

/// Default time that a guest may take to release a device.
const GUEST: Duration = Duration::from_secs(30);

/// Carries out plans on a host.
pub struct Regroup<'a> {
    host: &'a dyn Host,
    pub(super) vmms: &'a [&'a dyn Vmm],
    pub(super) state: StateDir,
    pub(super) deadline: Duration,
    stop: Option<&'a AtomicBool>,
    accepted: BTreeSet<Sbdf>,
}

/// Progress of a transaction: the record that was just written.
#[derive(Debug, Clone, Copy)]
pub struct Progress<'a> {
    /// The record.
    pub record: &'a Record,
    /// The action of the record.
    pub action: Option<&'a Action>,
}

/// Result of a transaction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Report {
    /// ID of the transaction.
    pub id: String,
    /// The plan.
    pub plan: Plan,
    /// The state of the host.
    pub outcome: Outcome,
    /// The first failure: action and error.
    pub failure: Option<(String, String)>,
    /// The remaining differences from the intended state.
    pub remains: Vec<Difference>,
    /// The unplugged devices, in their former form.
    #[serde(default)]
    pub unplugged: Vec<VmDevice>,
    /// How long virtual machines were without these devices, in milliseconds; none if they did not get them back.
    #[serde(default)]
    pub away_ms: Option<u64>,
    /// The journal.
    pub journal: PathBuf,
    /// Why the journal is incomplete, if it is.
    #[serde(default)]
    pub unrecorded: Option<String>,
    /// Why the transaction is unfinished and must be recovered again, if it is.
    #[serde(default)]
    pub open: Option<String>,
}

/// Called after each record.
pub(super) type Observer<'o> = dyn FnMut(&Progress<'_>) + 'o;

impl<'a> Regroup<'a> {
    /// Creates a transaction runner for a host with these virtual machines and this state directory.
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

    /// Sets the time that a guest may take to release a device.
    #[must_use]
    pub fn guest_deadline(self, deadline: Duration) -> Self {
        Self { deadline, ..self }
    }

    /// Sets a stop flag. Once it is `true`, a transaction before its commit is undone; one after its commit is
    /// completed.
    #[must_use]
    pub fn until(self, stop: &'a AtomicBool) -> Self {
        Self {
            stop: Some(stop),
            ..self
        }
    }

    /// Accepts for all plans that these functions are reachable without the IOMMU.
    #[must_use]
    pub fn accepting(self, accepted: BTreeSet<Sbdf>) -> Self {
        Self { accepted, ..self }
    }

    pub(super) fn sysfs_ops(&self) -> SysfsOps<'a> {
        SysfsOps::new(self.host)
    }

    /// Determines the effects that a plan would have now. Changes nothing.
    pub fn check(&self, plan: &Plan) -> Result<Forecast, RegroupError> {
        let topology = self.sysfs_ops().scan()?;
        let Preflight { forecast, .. } = self.preflight(&Preview::of(&topology, plan))?;
        Ok(Forecast {
            last_away_ms: self.state.last_away_ms()?,
            ..forecast
        })
    }

    fn preflight(&self, preview: &Preview<'_>) -> Result<Preflight, HostError> {
        let mut preflight = Preflight::of(self.sysfs_ops(), preview, self.vmms, &self.accepted)?;
        let blockers = &mut preflight.forecast.blockers;
        blockers.splice(0..0, self.unfinished());
        Ok(preflight)
    }

    pub(super) fn unfinished(&self) -> Vec<Blocker> {
        [self.state.running(), self.state.resetting()]
            .into_iter()
            .filter(|journal| journal.exists())
            .map(|journal| Blocker::Unfinished { journal })
            .collect()
    }

    /// Carries out a plan, and undoes it if it fails.
    pub fn apply(&self, plan: &Plan, observer: &mut Observer<'_>) -> Result<Report, RegroupError> {
        let lock = self.state.lock()?;
        let ops = self.sysfs_ops();
        let topology = ops.scan()?;
        let preview = Preview::of(&topology, plan);
        let Preflight { forecast, exposed } = self.preflight(&preview)?;
        let Forecast {
            blockers,
            unplug,
            plug,
            ..
        } = forecast;
        if !blockers.is_empty() {
            return Err(Refusal { blockers }.into());
        }
        let boot = ops.boot_id()?;
        let held = self.state.held(&boot)?;
        let vms = addresses(self.vmms, &unplug);
        let mut snapshot = Snapshot::take(ops, &preview, &held.ports, unplug)?;
        snapshot.exposed = exposed;
        let program = program(&snapshot, &preview, plug);
        let begin = Begin {
            version: VERSION,
            id: String::new(),
            boot,
            plan: plan.clone(),
            vms,
            snapshot,
            actions: program.actions,
            commit: program.commit,
        };
        self.state.prepare_held(&held.after(&begin.snapshot))?;
        let mut journal = self.state.begin(begin)?;
        observer(&Progress {
            record: &Record::Begin(Box::new(journal.begin().clone())),
            action: None,
        });
        let report = self.drive(&mut journal, observer);
        drop(lock);
        report
    }

    /// The boot ID of the host.
    pub fn boot_id(&self) -> Result<String, HostError> {
        self.sysfs_ops().boot_id()
    }

    /// The ports that are kept awake for the settings of earlier transactions.
    pub fn held(&self) -> Result<BTreeSet<Sbdf>, RegroupError> {
        let held = self.state.held(&self.boot_id()?)?;
        Ok(held.ports.into_keys().collect())
    }

    /// The devices that are withheld from their VMs until a check of the host permits their return.
    pub fn withheld(&self) -> Result<Vec<WithheldDevice>, RegroupError> {
        Ok(self.state.held(&self.boot_id()?)?.devices)
    }

    /// Records that a device is withheld from its VM.
    pub fn withhold(&self, device: &WithheldDevice) -> Result<(), RegroupError> {
        Ok(self.state.withhold(&self.boot_id()?, device)?)
    }

    /// Records that a device is no longer withheld from its VM.
    pub fn release(&self, vm: &str, id: &str) -> Result<(), RegroupError> {
        Ok(self.state.release(&self.boot_id()?, vm, id)?)
    }

    /// Writes the ACS registers of a port, unless a transaction is running or the port was replaced. Returns `false` if
    /// `wanted` no longer holds once no transaction can begin.
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

    /// Like [`write_acs`](Self::write_acs), but while a transaction of this process runs. It must not affect the port.
    pub fn write_acs_beside(
        &self,
        register: &AcsRegister,
        setting: &AcsSetting,
    ) -> Result<(), RegroupError> {
        let port = register.port();
        let Some(found) = register.read(self.host.sysfs()) else {
            return Err(HostError::Gone { function: port }.into());
        };
        // The vector comes first, so that egress control never uses a wrong one.
        let vector = setting
            .egress()
            .filter(|_| found.egress() != setting.egress());
        if let Some(vector) = vector {
            let at = register.vector_at();
            self.sysfs_ops().set_egress(port, at, &vector)?;
        }
        self.sysfs_ops()
            .set_acs_control(port, register.control_at(), setting.control())?;
        Ok(())
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stop.is_some_and(|stop| stop.load(Ordering::Acquire))
    }
}

/// The addresses of the virtual machines that have these devices.
fn addresses(vmms: &[&dyn Vmm], assigned: &[VmDevice]) -> BTreeMap<String, VmAddress> {
    let concerned = |name: &str| assigned.iter().any(|device| device.vm == name);
    let vmms = vmms.iter().filter(|vmm| concerned(vmm.name()));
    vmms.filter_map(|vmm| Some((vmm.name().to_owned(), vmm.address()?)))
        .collect()
}
