//! Virtual machines that can stall, refuse and die.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::sync::Mutex;
use std::time::Duration;

use hotplug::regroup::{Assigned, Prospect, VmAddress, Vmm, VmmError, VmmKind, Windows};
use iommu_group::{MemoryHole, Sbdf};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mood {
    Willing,
    /// The guest does not let go of this device.
    Stalls(Sbdf),
    /// It takes no device back.
    Refuses,
    /// It could not have peers.
    NoPeers,
    Dead,
    /// The process that asks for this device is killed, once.
    Kills(Sbdf),
}

/// A virtual machine with devices.
pub(crate) struct Guest {
    name: String,
    devices: Mutex<BTreeMap<Sbdf, Assigned>>,
    pub(crate) mood: Mutex<Mood>,
    /// Where its memory is.
    pub(crate) memory: Mutex<Option<RangeInclusive<u64>>>,
    /// What was asked of it, in its order.
    pub(crate) log: Mutex<Vec<String>>,
}

impl Guest {
    pub(crate) fn new(name: &str, functions: &[Sbdf]) -> Self {
        let device = |function: &Sbdf| {
            let device = Assigned {
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
            mood: Mutex::new(Mood::Willing),
            memory: Mutex::new(None),
            log: Mutex::new(Vec::new()),
        }
    }

    /// What it is like, in a text.
    pub(crate) fn state(&self) -> String {
        format!(
            "{:?} {:?}",
            self.mood.lock().unwrap(),
            self.devices.lock().unwrap()
        )
    }

    /// The process that it was to kill has been killed.
    pub(crate) fn survives(&self) {
        let mut mood = self.mood.lock().unwrap();
        if matches!(*mood, Mood::Kills(_)) {
            *mood = Mood::Willing;
        }
    }

    /// It does what it is asked for, if it is alive.
    pub(crate) fn heal(&self) {
        if !self.is_dead() {
            *self.mood.lock().unwrap() = Mood::Willing;
        }
    }

    pub(crate) fn is_dead(&self) -> bool {
        *self.mood.lock().unwrap() == Mood::Dead
    }

    pub(crate) fn has_id(&self, id: &str) -> bool {
        let devices = self.devices.lock().unwrap();
        devices.values().any(|device| device.id == id)
    }

    pub(crate) fn has(&self) -> Vec<Sbdf> {
        self.devices.lock().unwrap().keys().copied().collect()
    }

    fn alive(&self, word: &str, device: &Assigned) -> Result<Mood, VmmError> {
        let mood = *self.mood.lock().unwrap();
        if mood == Mood::Dead {
            return Err(VmmError::Gone {
                vm: self.name.clone(),
            });
        }
        if mood == Mood::Kills(device.function) {
            std::panic::resume_unwind(Box::new(crate::machine::Killed));
        }
        let line = format!("{word} {}", device.function);
        self.log.lock().unwrap().push(line);
        Ok(mood)
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

    fn devices(&self) -> Result<Vec<Assigned>, VmmError> {
        if *self.mood.lock().unwrap() == Mood::Dead {
            return Err(VmmError::Gone {
                vm: self.name.clone(),
            });
        }
        Ok(self.devices.lock().unwrap().values().cloned().collect())
    }

    fn could_have(&self, prospect: &Prospect<'_>) -> Result<(), VmmError> {
        for (function, holes) in prospect.holes {
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
        let none = *self.mood.lock().unwrap() == Mood::NoPeers;
        match prospect.devices.iter().find(|device| device.p2p) {
            Some(device) if none => Err(VmmError::Refused {
                vm: self.name.clone(),
                reason: format!("{} cannot be a peer", device.function),
            }),
            _ => Ok(()),
        }
    }

    fn revoke(&self, device: &Assigned) -> Result<Windows, VmmError> {
        self.alive("revoke", device).map(|_| Windows::Closed)
    }

    fn reopen(&self, device: &Assigned) -> Result<(), VmmError> {
        self.alive("reopen", device).map(drop)
    }

    fn unplug(&self, device: &Assigned, deadline: Duration) -> Result<(), VmmError> {
        if self.alive("unplug", device)? == Mood::Stalls(device.function) {
            return Err(VmmError::Stalled {
                vm: self.name.clone(),
                id: device.id.clone(),
                deadline,
            });
        }
        self.devices.lock().unwrap().remove(&device.function);
        Ok(())
    }

    fn plug(&self, device: &Assigned) -> Result<(), VmmError> {
        if *self.mood.lock().unwrap() == Mood::Dead {
            return Err(VmmError::Gone {
                vm: self.name.clone(),
            });
        }
        if self.has().contains(&device.function) {
            return Ok(());
        }
        if self.alive("plug", device)? == Mood::Refuses {
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
