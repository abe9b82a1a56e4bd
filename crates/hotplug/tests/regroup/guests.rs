//! Fake virtual machines that can stall, refuse and end.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::sync::Mutex;
use std::time::Duration;

use hotplug::regroup::{
    PeerMappings, ProposedDevices, VmAddress, VmDevice, Vmm, VmmError, VmmKind,
};
use iommu_group::{MemoryHole, Sbdf};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Behaviour {
    Willing,
    /// The guest does not release this device.
    Stalls(Sbdf),
    /// The VM takes no device back.
    Refuses,
    /// The VM cannot have peers.
    NoPeers,
    Dead,
    /// The process that makes a call for this device is killed, once.
    Kills(Sbdf),
}

/// A virtual machine with devices.
pub(crate) struct Guest {
    name: String,
    devices: Mutex<BTreeMap<Sbdf, VmDevice>>,
    /// Those whose mappings for peers are closed.
    closed: Mutex<BTreeSet<Sbdf>>,
    pub(crate) behaviour: Mutex<Behaviour>,
    /// Range of its memory.
    pub(crate) memory: Mutex<Option<RangeInclusive<u64>>>,
    /// The calls so far, in order.
    pub(crate) log: Mutex<Vec<String>>,
}

impl Guest {
    pub(crate) fn new(name: &str, functions: &[Sbdf]) -> Self {
        let device = |function: &Sbdf| {
            let device = VmDevice {
                vm: name.to_owned(),
                id: format!("dev-{function}"),
                function: *function,
                p2p: true,
                domain: None,
                expose: BTreeSet::new(),
                slot: None,
            };
            (*function, device)
        };
        Self {
            name: name.to_owned(),
            devices: Mutex::new(functions.iter().map(device).collect()),
            closed: Mutex::default(),
            behaviour: Mutex::new(Behaviour::Willing),
            memory: Mutex::new(None),
            log: Mutex::new(Vec::new()),
        }
    }

    /// The state as text.
    pub(crate) fn state(&self) -> String {
        format!(
            "{:?} {:?} {:?}",
            self.behaviour.lock().unwrap(),
            self.devices.lock().unwrap(),
            self.closed.lock().unwrap()
        )
    }

    /// The process that it was to kill has been killed.
    pub(crate) fn clear_kill(&self) {
        let mut behaviour = self.behaviour.lock().unwrap();
        if matches!(*behaviour, Behaviour::Kills(_)) {
            *behaviour = Behaviour::Willing;
        }
    }

    /// Makes the VM cooperate, unless it has ended.
    pub(crate) fn cooperate(&self) {
        if !self.is_dead() {
            *self.behaviour.lock().unwrap() = Behaviour::Willing;
        }
    }

    pub(crate) fn is_dead(&self) -> bool {
        *self.behaviour.lock().unwrap() == Behaviour::Dead
    }

    pub(crate) fn has_id(&self, id: &str) -> bool {
        let devices = self.devices.lock().unwrap();
        devices.values().any(|device| device.id == id)
    }

    pub(crate) fn has(&self) -> Vec<Sbdf> {
        self.devices.lock().unwrap().keys().copied().collect()
    }

    /// The devices that peers do not reach.
    pub(crate) fn closed(&self) -> Vec<Sbdf> {
        self.closed.lock().unwrap().iter().copied().collect()
    }

    fn alive(&self, word: &str, device: &VmDevice) -> Result<Behaviour, VmmError> {
        let behaviour = *self.behaviour.lock().unwrap();
        if behaviour == Behaviour::Dead {
            return Err(VmmError::Gone {
                vm: self.name.clone(),
            });
        }
        if behaviour == Behaviour::Kills(device.function) {
            std::panic::resume_unwind(Box::new(crate::fake_host::Killed));
        }
        let line = format!("{word} {}", device.function);
        self.log.lock().unwrap().push(line);
        Ok(behaviour)
    }
}

impl Vmm for Guest {
    fn name(&self) -> &str {
        &self.name
    }

    fn address(&self) -> Option<VmAddress> {
        Some(VmAddress {
            socket: format!("/run/{}.sock", self.name).into(),
            kind: VmmKind::P2pVmm,
        })
    }

    fn devices(&self) -> Result<Vec<VmDevice>, VmmError> {
        if *self.behaviour.lock().unwrap() == Behaviour::Dead {
            return Err(VmmError::Gone {
                vm: self.name.clone(),
            });
        }
        Ok(self.devices.lock().unwrap().values().cloned().collect())
    }

    fn could_have(&self, proposed: &ProposedDevices<'_>) -> Result<(), VmmError> {
        for (function, holes) in proposed.holes {
            let memory = self.memory.lock().unwrap().clone();
            if let Some(memory) = memory
                && let Some(hole) = MemoryHole::worst(holes, &memory)
            {
                return Err(VmmError::Memory {
                    vm: self.name.clone(),
                    function: *function,
                    memory,
                    hole: hole.clone(),
                });
            }
        }
        let none = *self.behaviour.lock().unwrap() == Behaviour::NoPeers;
        match proposed.devices.iter().find(|device| device.p2p) {
            Some(device) if none => Err(VmmError::Refused {
                vm: self.name.clone(),
                reason: format!("{} cannot be a peer", device.function),
            }),
            _ => Ok(()),
        }
    }

    fn revoke(&self, device: &VmDevice) -> Result<PeerMappings, VmmError> {
        self.alive("revoke", device)?;
        if self.has().contains(&device.function) {
            self.closed.lock().unwrap().insert(device.function);
        }
        Ok(PeerMappings::Closed)
    }

    fn reopen(&self, device: &VmDevice) -> Result<(), VmmError> {
        self.alive("reopen", device)?;
        self.closed.lock().unwrap().remove(&device.function);
        Ok(())
    }

    fn unplug(&self, device: &VmDevice, deadline: Duration) -> Result<(), VmmError> {
        if self.alive("unplug", device)? == Behaviour::Stalls(device.function) {
            return Err(VmmError::Stalled {
                vm: self.name.clone(),
                id: device.id.clone(),
                deadline,
            });
        }
        self.devices.lock().unwrap().remove(&device.function);
        self.closed.lock().unwrap().remove(&device.function);
        Ok(())
    }

    fn plug(&self, device: &VmDevice) -> Result<(), VmmError> {
        if *self.behaviour.lock().unwrap() == Behaviour::Dead {
            return Err(VmmError::Gone {
                vm: self.name.clone(),
            });
        }
        if self.has().contains(&device.function) {
            self.closed.lock().unwrap().remove(&device.function);
            return Ok(());
        }
        if self.alive("plug", device)? == Behaviour::Refuses {
            return Err(VmmError::Refused {
                vm: self.name.clone(),
                reason: "no slot is free".to_owned(),
            });
        }
        let mut devices = self.devices.lock().unwrap();
        devices.insert(device.function, device.clone());
        Ok(())
    }
}
