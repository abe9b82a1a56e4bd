//! A virtual machine of cloud-hypervisor as its releases are, v51 and later.
//!
//! It has less to say of its devices than a VMM of this project, and what it says differs from version to version:
//!
//! * There is no P2P of one device: BARs are mapped for all devices of the VM or for none, but for those BARs that a
//!   device was added without (`x_exclude_mmap_bars`, v52). What that comes to is for a [`Gate`] to decide.
//! * Windows cannot be closed while a device is plugged.
//! * A device whose removal was asked for is no more among those that were asked for (`config`), and stays in the tree
//!   of devices until the guest lets go. That cannot be taken back. Some versions take a second request as a reminder,
//!   others refuse it.
//! * It tells that a device has gone before it has closed it: who waits for that has to look at its descriptors.

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

use super::remote::{in_one_line, is_gone};
use super::vmm::{Assigned, Prospect, VmAddress, Vmm, VmmError, VmmKind, Windows};
use events::Removals;
use held::Held;
use info::{Found, Info};
use vmm_api::{Client, ClientError, Gate, GatedCall, Passage};

/// How often is looked whether a device has gone.
const POLL: Duration = Duration::from_millis(50);
/// How often the VMM is asked if it tells by itself: an answer is a description of the whole VM.
const RARELY: Duration = Duration::from_secs(1);
/// How often a guest is reminded.
const REMIND: Duration = Duration::from_secs(5);
/// How long the VMM may take to close what the guest has let go of.
const CLOSE: Duration = Duration::from_secs(30);
/// How long a device may take to go that is in the way of itself.
const REPLUG: Duration = Duration::from_secs(30);

/// A virtual machine of cloud-hypervisor. Clones are the same.
#[derive(Clone)]
pub struct StockVmm(Arc<Stock>);

struct Stock {
    name: String,
    client: Client,
    gate: Arc<dyn Gate>,
    /// Where its event monitor writes, in files named by process id.
    events: PathBuf,
    proc: PathBuf,
    /// The devices by name, as they were last seen among those that were asked for.
    seen: Arc<Mutex<BTreeMap<String, Assigned>>>,
    /// Devices are added one after the other: each is judged by what the VM has already.
    adding: Arc<Mutex<()>>,
}

impl StockVmm {
    /// The virtual machine whose VMM is at the other end of `client`. `gate` decides which devices it may have, and
    /// `events` is a directory in which its event monitor writes to a file named by its process id, if it has one.
    pub fn new(
        name: impl Into<String>,
        client: Client,
        gate: Box<dyn Gate>,
        events: impl Into<PathBuf>,
    ) -> Self {
        Self(Arc::new(Stock {
            name: name.into(),
            client,
            gate: gate.into(),
            events: events.into(),
            proc: PathBuf::from("/proc"),
            seen: Arc::default(),
            adding: Arc::default(),
        }))
    }

    /// The same with another patience: how long a call may take in all.
    #[must_use]
    pub fn with_patience(&self, patience: Duration) -> Self {
        let stock = &self.0;
        Self(Arc::new(Stock {
            name: stock.name.clone(),
            client: stock.client.clone().with_patience(patience),
            gate: Arc::clone(&stock.gate),
            events: stock.events.clone(),
            proc: stock.proc.clone(),
            seen: Arc::clone(&stock.seen),
            adding: Arc::clone(&stock.adding),
        }))
    }
}

impl Stock {
    fn info(&self) -> Result<Info, VmmError> {
        self.info_by(&self.client)
    }

    fn info_by(&self, client: &Client) -> Result<Info, VmmError> {
        const NOT_FOUND: u16 = 404;
        match client.get("vm.info") {
            Ok(info) => Ok(Info::new(info)),
            // There is no VM yet, or no more.
            Err(ClientError::Failed {
                status: NOT_FOUND, ..
            }) => Ok(Info::none()),
            Err(error) => Err(self.error(&error)),
        }
    }

    /// Its devices. One that was asked to go and stays is here yet.
    fn devices(&self, info: &Info) -> Vec<Assigned> {
        let mut seen = self.seen();
        seen.retain(|id, _| info.find(id) != Found::Absent);
        for device in info.plugged() {
            seen.insert(device.id.clone(), self.assigned(device));
        }
        seen.values().cloned().collect()
    }

    /// What the VM has of a device.
    fn find(&self, info: &Info, id: &str) -> Found {
        let found = info.find(id);
        if let Found::Plugged(device) = &found {
            self.seen().insert(id.to_owned(), self.assigned(device));
        }
        found
    }

    fn assigned(&self, device: &info::Device) -> Assigned {
        Assigned {
            vm: self.name.clone(),
            id: device.id.clone(),
            function: device.function,
            p2p: device.p2p,
            domain: None,
            expose: BTreeSet::new(),
            slot: device.slot.clone(),
        }
    }

    /// Asks once for a device to go. Whether that was heard shows in what the VM has.
    fn ask_to_go(&self, id: &str) -> Result<(), VmmError> {
        match self.client.put("vm.remove-device", &json!({ "id": id })) {
            Err(error) if is_gone(&error) => Err(self.gone()),
            Ok(_) => Ok(()),
            Err(error) => match self.info()?.find(id) {
                // Asked before, by us or by somebody else.
                Found::Leaving | Found::Absent => Ok(()),
                Found::Plugged(_) => Err(self.error(&error)),
            },
        }
    }

    /// Waits until the guest has let go of a device.
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
                let told = removals.as_mut().is_some_and(|removals| removals.told(id));
                let tells = removals.as_ref().is_some_and(Removals::tells);
                if told || !tells || looked.elapsed() >= RARELY {
                    break;
                }
            }
        }
    }

    /// Waits until the VMM has closed a function that the guest has let go of.
    fn wait_for_vfio(&self, function: Sbdf, id: &str) -> Result<(), VmmError> {
        let Some(pid) = self.pid() else {
            return Ok(());
        };
        let started = Instant::now();
        loop {
            // Those that are on their way out have theirs open yet.
            let info = self.info()?;
            let leaving = |id: &String| matches!(info.find(id), Found::Leaving);
            let open = info.plugged().len() + self.seen().keys().filter(|id| leaving(id)).count();
            if !Held::read(&self.proc, pid).may_hold(function, open) {
                return Ok(());
            }
            if started.elapsed() > CLOSE {
                return Err(self.refused(format!(
                    "the guest has let go of {id}, and the VMM has {function} open yet"
                )));
            }
            thread::sleep(POLL);
        }
    }

    fn add(&self, device: &Assigned) -> Result<(), VmmError> {
        let _one = self.adding.lock().unwrap_or_else(PoisonError::into_inner);
        let asked = info::description(device);
        let body: Value = match self
            .gate
            .pass(GatedCall::AddDevice, &json_bytes(&asked), &[])
        {
            Passage::Passes(body) => serde_json::from_slice(&body)
                .map_err(|error| self.refused(format!("cannot describe {}: {error}", device.id)))?,
            Passage::Refused { reasons } => return Err(self.refused(reasons.join("; "))),
            Passage::Malformed(why) => return Err(self.refused(why)),
            Passage::Failed { messages } => return Err(self.refused(messages.join(": "))),
        };
        let added = self.client.put("vm.add-device", &body);
        added.map(drop).map_err(|error| self.error(&error))
    }

    /// Whether its devices would reach all of its memory, which stays where it is. What is not certain stops no plan: it
    /// stopped no device when that came first.
    fn reaches_memory(&self, prospect: &Prospect<'_>) -> Result<(), VmmError> {
        let certain = |hole: &MemoryHole| hole.certain;
        if !prospect.holes.values().flatten().any(certain) {
            return Ok(());
        }
        match self.gate.memory(&self.info()?.description()) {
            Some(memory) => prospect.reach_memory(&self.name, &memory, certain),
            None => Err(self.refused(
                "where its memory is cannot be made out, and devices behind a switch must reach it"
                    .to_owned(),
            )),
        }
    }

    /// The VMM's process, if it is one of this machine.
    fn pid(&self) -> Option<u32> {
        let pid = u32::try_from(self.client.ping().ok()?.pid).ok()?;
        self.proc.join(pid.to_string()).exists().then_some(pid)
    }

    fn seen(&self) -> MutexGuard<'_, BTreeMap<String, Assigned>> {
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

impl Vmm for StockVmm {
    fn name(&self) -> &str {
        &self.0.name
    }

    fn address(&self) -> Option<VmAddress> {
        Some(VmAddress {
            socket: self.0.client.socket().to_owned(),
            kind: VmmKind::CloudHypervisor,
        })
    }

    fn devices(&self) -> Result<Vec<Assigned>, VmmError> {
        Ok(self.0.devices(&self.0.info()?))
    }

    fn devices_within(&self, patience: Duration) -> Result<Vec<Assigned>, VmmError> {
        let client = self.0.client.clone().with_patience(patience);
        Ok(self.0.devices(&self.0.info_by(&client)?))
    }

    fn could_have(&self, prospect: &Prospect<'_>) -> Result<(), VmmError> {
        self.0.reaches_memory(prospect)?;
        let peers: Vec<&Assigned> = prospect.devices.iter().filter(|d| d.p2p).collect();
        let Some(first) = peers.first() else {
            return Ok(());
        };
        if !self.0.info()?.maps_bars() {
            return Err(self.0.refused(
                "it was started with vfio_p2p_dma=off, so none of its devices can become peers \
                 (start it with p2pctl launch --joinable)"
                    .to_owned(),
            ));
        }
        if let Some(other) = prospect.devices.iter().find(|device| !device.p2p) {
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
        let straight = prospect.routes.iter().find(|route| {
            is_peer(route.from)
                && is_peer(route.to)
                && route.after.placement() == Some(Placement::AtBusAddress)
        });
        match straight {
            Some(route) => Err(self.0.refused(format!(
                "requests from {} to {} would go straight across a switch, by bus address, and cloud-hypervisor gives \
                 BARs addresses of its own (--route iommu, or use p2p-vmm)",
                route.from, route.to
            ))),
            None => Ok(()),
        }
    }

    fn revoke(&self, device: &Assigned) -> Result<Windows, VmmError> {
        match self.0.find(&self.0.info()?, &device.id) {
            Found::Plugged(found) if found.p2p => Ok(Windows::OpenWhilePlugged),
            Found::Plugged(_) | Found::Leaving | Found::Absent => Ok(Windows::Closed),
        }
    }

    /// They were never closed while it was plugged.
    fn reopen(&self, _: &Assigned) -> Result<(), VmmError> {
        Ok(())
    }

    fn unplug(&self, device: &Assigned, deadline: Duration) -> Result<(), VmmError> {
        self.0.wait_for_guest(&device.id, deadline)?;
        self.0.wait_for_vfio(device.function, &device.id)?;
        self.0.seen().remove(&device.id);
        self.0.gate.left(device.function);
        Ok(())
    }

    fn expect(&self, devices: &[Assigned]) {
        for device in devices {
            self.0.gate.left(device.function);
        }
    }

    fn plug(&self, device: &Assigned) -> Result<(), VmmError> {
        match self.0.find(&self.0.info()?, &device.id) {
            Found::Absent => {}
            Found::Plugged(found) if found.p2p == device.p2p => return Ok(()),
            Found::Plugged(_) => self.unplug(device, REPLUG)?,
            Found::Leaving => {
                let was = self.0.seen().get(&device.id).cloned();
                // It may stay as it is; that it was asked to go cannot be taken back.
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
