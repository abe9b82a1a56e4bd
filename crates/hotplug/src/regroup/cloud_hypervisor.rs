//! A virtual machine of a cloud-hypervisor release, v51 or later.
//!
//! cloud-hypervisor reports less about its devices than a VMM of this project, and its answers differ between versions:
//!
//! * P2P is not a property of one device: BARs are mapped for all devices of the VM or for none, except for BARs that a
//!   device was added without (`x_exclude_mmap_bars`, v52). A [`RequestFilter`] decides about this.
//! * Peer mappings cannot be closed while a device is plugged.
//! * After a removal request a device is no longer in `config`, and stays in the device tree until the guest releases it.
//!   The request cannot be withdrawn. Some versions take a second request as a reminder, others refuse it.
//! * The removal event comes before the device is closed. The process's descriptors show when it is closed.

mod events;
mod held;
mod info;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use iommu_group::{MemoryHole, Placement, Sbdf};
use serde_json::{Value, json};

use super::vmm::{
    PeerMappings, ProposedDevices, VmAddress, VmDevice, Vmm, VmmError, VmmKind, in_one_line,
    is_gone,
};
use events::Removals;
use held::Held;
use info::{Found, Info};
use vmm_api::{Client, ClientError, Decision, FilteredCall, RequestFilter};

/// Interval of checks whether a device is gone.
const POLL: Duration = Duration::from_millis(50);
/// Interval of queries if the VMM has an event monitor: an answer describes the whole VM.
const RARELY: Duration = Duration::from_secs(1);
/// Interval of reminders to the guest.
const REMIND: Duration = Duration::from_secs(5);
/// Time that the VMM may take to close a device that the guest has released.
const CLOSE: Duration = Duration::from_secs(30);
/// Time to wait for the removal of the same device before it is added again.
const REPLUG: Duration = Duration::from_secs(30);

/// A virtual machine of cloud-hypervisor. Clones share it.
#[derive(Clone)]
pub struct CloudHypervisorVmm(Arc<Inner>);

#[derive(Clone)]
struct Inner {
    name: String,
    client: Client,
    filter: Arc<dyn RequestFilter>,
    /// Directory of the event monitor's files, named by process ID.
    events: PathBuf,
    proc: PathBuf,
    /// The devices by name, as last seen in `config`.
    seen: Arc<Mutex<BTreeMap<String, VmDevice>>>,
    /// Serializes additions: each is decided with knowledge of the VM's devices.
    adding: Arc<Mutex<()>>,
}

impl CloudHypervisorVmm {
    /// The virtual machine whose VMM `client` calls. `filter` decides which devices it may have. `events` is a directory
    /// where its event monitor, if it has one, writes to a file named by its process ID.
    pub fn new(
        name: impl Into<String>,
        client: Client,
        filter: Box<dyn RequestFilter>,
        events: impl Into<PathBuf>,
    ) -> Self {
        Self(Arc::new(Inner {
            name: name.into(),
            client,
            filter: filter.into(),
            events: events.into(),
            proc: PathBuf::from("/proc"),
            seen: Arc::default(),
            adding: Arc::default(),
        }))
    }

    /// Sets the time that a call may take in all.
    #[must_use]
    pub fn with_patience(&self, patience: Duration) -> Self {
        let mut inner = Inner::clone(&self.0);
        inner.client = inner.client.with_patience(patience);
        Self(Arc::new(inner))
    }
}

impl Inner {
    fn info(&self) -> Result<Info, VmmError> {
        self.info_by(&self.client)
    }

    fn info_by(&self, client: &Client) -> Result<Info, VmmError> {
        const NOT_FOUND: u16 = 404;
        match client.get("vm.info") {
            Ok(info) => Ok(Info::new(info)),
            // There is no VM.
            Err(ClientError::Failed {
                status: NOT_FOUND, ..
            }) => Ok(Info::none()),
            Err(error) => Err(self.error(&error)),
        }
    }

    /// The devices of the VM, including those that stay after a removal request.
    fn devices(&self, info: &Info) -> Vec<VmDevice> {
        let mut seen = self.seen();
        seen.retain(|id, _| info.find(id) != Found::Absent);
        for device in info.plugged() {
            seen.insert(device.id.clone(), self.assigned(device));
        }
        seen.values().cloned().collect()
    }

    /// The state of a device in the VM.
    fn find(&self, info: &Info, id: &str) -> Found {
        let found = info.find(id);
        if let Found::Plugged(device) = &found {
            self.seen().insert(id.to_owned(), self.assigned(device));
        }
        found
    }

    fn assigned(&self, device: &info::Device) -> VmDevice {
        VmDevice {
            vm: self.name.clone(),
            id: device.id.clone(),
            function: device.function,
            p2p: device.p2p,
            domain: None,
            expose: BTreeSet::new(),
            slot: device.slot.clone(),
        }
    }

    /// Sends one removal request. The state of the VM shows whether it had an effect.
    fn ask_to_go(&self, id: &str) -> Result<(), VmmError> {
        match self.client.put("vm.remove-device", &json!({ "id": id })) {
            Err(error) if is_gone(&error) => Err(self.gone()),
            Ok(_) => Ok(()),
            Err(error) => match self.info()?.find(id) {
                // The removal was requested before.
                Found::Leaving | Found::Absent => Ok(()),
                Found::Plugged(_) => Err(self.error(&error)),
            },
        }
    }

    /// Waits until the guest has released a device.
    fn wait_for_guest(&self, id: &str, deadline: Duration) -> Result<(), VmmError> {
        let until = Instant::now() + deadline;
        let mut removals = self.pid().map(|pid| Removals::of(&self.events, pid));
        let mut asked: Option<Instant> = None;
        loop {
            let looked = Instant::now();
            if self.find(&self.info()?, id) == Found::Absent {
                return Ok(());
            }
            if asked.is_none_or(|asked| asked.elapsed() >= REMIND) {
                self.ask_to_go(id)?;
                asked = Some(Instant::now());
            }
            loop {
                if Instant::now() >= until {
                    return Err(VmmError::Stalled {
                        vm: self.name.clone(),
                        id: id.to_owned(),
                        deadline,
                    });
                }
                thread::sleep(POLL);
                let reported = removals
                    .as_mut()
                    .is_some_and(|removals| removals.reports(id));
                let has_monitor = removals.as_ref().is_some_and(Removals::is_active);
                if reported || !has_monitor || looked.elapsed() >= RARELY {
                    break;
                }
            }
        }
    }

    /// Waits until the VMM has closed a function that the guest has released.
    fn wait_for_vfio(&self, function: Sbdf, id: &str) -> Result<(), VmmError> {
        let Some(pid) = self.pid() else {
            return Ok(());
        };
        let started = Instant::now();
        loop {
            // Devices that are being removed are still open.
            let info = self.info()?;
            let leaving = |id: &String| matches!(info.find(id), Found::Leaving);
            let open = info.plugged().len() + self.seen().keys().filter(|id| leaving(id)).count();
            if !Held::read(&self.proc, pid).may_hold(function, open) {
                return Ok(());
            }
            if started.elapsed() > CLOSE {
                return Err(self.refused(format!(
                    "the guest has released {id}, but the VMM still has {function} open"
                )));
            }
            thread::sleep(POLL);
        }
    }

    fn add(&self, device: &VmDevice) -> Result<(), VmmError> {
        let _one = self.adding.lock().unwrap_or_else(PoisonError::into_inner);
        let asked = info::description(device);
        let body: Value =
            match self
                .filter
                .decide(FilteredCall::AddDevice, &json_bytes(&asked), &[])
            {
                Decision::Forward(body) => serde_json::from_slice(&body).map_err(|error| {
                    self.refused(format!("cannot describe {}: {error}", device.id))
                })?,
                Decision::Refused { reasons } => return Err(self.refused(reasons.join("; "))),
                Decision::Malformed(why) => return Err(self.refused(why)),
                Decision::Failed { messages } => return Err(self.refused(messages.join(": "))),
            };
        let added = self.client.put("vm.add-device", &body);
        added.map(drop).map_err(|error| self.error(&error))
    }

    /// Whether the devices would reach all of the VM's memory, which cannot move. An uncertain hole is ignored, as when
    /// a device is added to a VM.
    fn reaches_memory(&self, proposed: &ProposedDevices<'_>) -> Result<(), VmmError> {
        let certain = |hole: &MemoryHole| hole.certain;
        if !proposed.holes.values().flatten().any(certain) {
            return Ok(());
        }
        match self.filter.memory(&self.info()?.description()) {
            Some(memory) => proposed.reach_memory(&self.name, &memory, certain),
            None => Err(self.refused(
                "the layout of its memory is unknown, and devices behind a switch must reach all of it"
                    .to_owned(),
            )),
        }
    }

    /// The process ID of the VMM, if it runs on this host.
    fn pid(&self) -> Option<u32> {
        let pid = u32::try_from(self.client.ping().ok()?.pid).ok()?;
        self.proc.join(pid.to_string()).exists().then_some(pid)
    }

    fn seen(&self) -> MutexGuard<'_, BTreeMap<String, VmDevice>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn gone(&self) -> VmmError {
        VmmError::Gone {
            vm: self.name.clone(),
        }
    }

    fn refused(&self, reason: String) -> VmmError {
        VmmError::Refused {
            vm: self.name.clone(),
            reason: in_one_line(&reason),
        }
    }

    fn error(&self, error: &ClientError) -> VmmError {
        VmmError::of(&self.name, error)
    }
}

fn json_bytes(value: &Value) -> Vec<u8> {
    value.to_string().into_bytes()
}

impl Vmm for CloudHypervisorVmm {
    fn name(&self) -> &str {
        &self.0.name
    }

    fn address(&self) -> Option<VmAddress> {
        Some(VmAddress {
            socket: self.0.client.socket().to_owned(),
            kind: VmmKind::CloudHypervisor,
        })
    }

    fn devices(&self) -> Result<Vec<VmDevice>, VmmError> {
        Ok(self.0.devices(&self.0.info()?))
    }

    fn devices_within(&self, patience: Duration) -> Result<Vec<VmDevice>, VmmError> {
        let client = self.0.client.clone().with_patience(patience);
        Ok(self.0.devices(&self.0.info_by(&client)?))
    }

    fn could_have(&self, proposed: &ProposedDevices<'_>) -> Result<(), VmmError> {
        self.0.reaches_memory(proposed)?;
        let peers: Vec<&VmDevice> = proposed.devices.iter().filter(|d| d.p2p).collect();
        let Some(first) = peers.first() else {
            return Ok(());
        };
        if !self.0.info()?.maps_bars() {
            return Err(self.0.refused(
                "it was started with vfio_p2p_dma=off, so its devices cannot become peers \
                 (start it with p2pctl launch --joinable)"
                    .to_owned(),
            ));
        }
        if let Some(other) = proposed.devices.iter().find(|device| !device.p2p) {
            return Err(self.0.refused(format!(
                "{} would not be a peer of {}, and cloud-hypervisor has one IOMMU context for all devices of a VM: it \
                 cannot keep {} from the peers' BARs (join it too, remove it first, or use p2p-vmm)",
                other.function, first.function, other.function
            )));
        }
        if let Some(other) = peers.iter().find(|peer| peer.domain != first.domain) {
            return Err(self.0.refused(format!(
                "{} and {} would be in two domains, and cloud-hypervisor has one IOMMU context for all devices of a VM \
                 (use p2p-vmm)",
                first.function, other.function
            )));
        }
        let is_peer = |function: Sbdf| peers.iter().any(|peer| peer.function == function);
        let straight = proposed.routes.iter().find(|route| {
            is_peer(route.from)
                && is_peer(route.to)
                && route.after.placement() == Some(Placement::AtBusAddress)
        });
        match straight {
            Some(route) => Err(self.0.refused(format!(
                "requests from {} to {} would be routed by a switch, by bus address, and cloud-hypervisor gives \
                 BARs addresses of its own (--route iommu, or use p2p-vmm)",
                route.from, route.to
            ))),
            None => Ok(()),
        }
    }

    fn revoke(&self, device: &VmDevice) -> Result<PeerMappings, VmmError> {
        match self.0.find(&self.0.info()?, &device.id) {
            Found::Plugged(found) if found.p2p => Ok(PeerMappings::OpenWhilePlugged),
            Found::Plugged(_) | Found::Leaving | Found::Absent => Ok(PeerMappings::Closed),
        }
    }

    /// The mappings were never closed while the device was plugged.
    fn reopen(&self, _: &VmDevice) -> Result<(), VmmError> {
        Ok(())
    }

    fn unplug(&self, device: &VmDevice, deadline: Duration) -> Result<(), VmmError> {
        self.0.wait_for_guest(&device.id, deadline)?;
        self.0.wait_for_vfio(device.function, &device.id)?;
        self.0.seen().remove(&device.id);
        self.0.filter.function_left(device.function);
        Ok(())
    }

    fn expect(&self, devices: &[VmDevice]) {
        for device in devices {
            self.0.filter.function_left(device.function);
        }
    }

    fn plug(&self, device: &VmDevice) -> Result<(), VmmError> {
        match self.0.find(&self.0.info()?, &device.id) {
            Found::Absent => {}
            Found::Plugged(found) if found.p2p == device.p2p => return Ok(()),
            Found::Plugged(_) => self.unplug(device, REPLUG)?,
            Found::Leaving => {
                let was = self.0.seen().get(&device.id).cloned();
                // The device may stay as it is; its removal request cannot be withdrawn.
                if was.is_none_or(|was| was.p2p == device.p2p) {
                    self.0.seen().insert(device.id.clone(), device.clone());
                    return Ok(());
                }
                self.unplug(device, REPLUG)?;
            }
        }
        self.0.add(device)
    }
}

#[cfg(test)]
mod tests;
