//! What stays held when no change is under way: ports that are kept awake for settings that the kernel would undo, and
//! devices that are kept from their VMs.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::thread;
use std::time::{Duration, Instant};

use iommu_group::Sbdf;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::baseline::Baseline;
use super::error::StateError;
use super::machine::POWER;
use super::state_dir::StateDir;
use super::withheld::WithheldDevice;

/// How long others may take to write down what they hold …
const OTHERS: Duration = Duration::from_secs(5);

/// … and how often to see whether they have.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// What is held.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Held {
    /// What the kernel calls the start of the machine in which they are.
    pub(super) boot: String,
    /// What `power/control` of each port was.
    pub(super) ports: BTreeMap<Sbdf, String>,
    /// The devices that are kept from their VMs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) devices: Vec<WithheldDevice>,
}

impl Held {
    fn none(boot: &str) -> Self {
        Self {
            boot: boot.to_owned(),
            ports: BTreeMap::new(),
            devices: Vec::new(),
        }
    }

    /// The same after a transaction has come to its end.
    pub(super) fn after(mut self, baseline: &Baseline) -> Self {
        for (port, was) in baseline.with(|part| part.awake || part.removed) {
            let power = was.rest.clone();
            let power = power.or_else(|| was.attributes.get(POWER).cloned());
            match power.filter(|_| was.part.held) {
                Some(power) => self.ports.insert(port, power),
                None => self.ports.remove(&port),
            };
        }
        self
    }

    /// The same without a device.
    fn without(mut self, vm: &str, id: &str) -> Self {
        self.devices
            .retain(|other| other.device.vm != vm || other.device.id != id);
        self
    }

    fn text(&self) -> Vec<u8> {
        let mut text = serde_json::to_vec_pretty(self).unwrap_or_default();
        text.push(b'\n');
        text
    }
}

impl StateDir {
    /// What is held in this start of the machine.
    pub(super) fn held(&self, boot: &str) -> Result<Held, StateError> {
        let path = self.path().join("held.json");
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Held::none(boot)),
            Err(error) => return Err(StateError::io("read", &path)(error)),
        };
        let held: Held = serde_json::from_slice(&text).map_err(|error| StateError::Journal {
            path,
            line: error.line(),
            reason: error.to_string(),
        })?;
        // After a reboot neither they nor the settings are.
        Ok(if held.boot == boot {
            held
        } else {
            Held::none(boot)
        })
    }

    /// Writes down which ports are to be kept awake, so that [`hold`](Self::hold) needs no space.
    pub(super) fn prepare_held(&self, held: &Held) -> Result<(), StateError> {
        let path = self.path().join("held.json");
        self.replacement(&path, &held.text()).map(drop)
    }

    /// Notes which ports are kept awake, of those that were kept awake before and those of a transaction that is over.
    pub(super) fn hold(&self, boot: &str, baseline: &Baseline) -> Result<(), StateError> {
        self.change_held(boot, |held| held.after(baseline))
    }

    /// Notes that a device is kept from its VM.
    pub(super) fn withhold(&self, boot: &str, device: &WithheldDevice) -> Result<(), StateError> {
        self.change_held(boot, |held| {
            let mut held = held.without(&device.device.vm, &device.device.id);
            held.devices.push(device.clone());
            held
        })
    }

    /// Notes that a device is not kept from its VM any more.
    pub(super) fn release(&self, boot: &str, vm: &str, id: &str) -> Result<(), StateError> {
        self.change_held(boot, |held| held.without(vm, id))
    }

    /// Writes down what is held after a change of it. Nobody else does meanwhile.
    fn change_held(&self, boot: &str, change: impl FnOnce(Held) -> Held) -> Result<(), StateError> {
        fs::create_dir_all(self.path()).map_err(StateError::io("create", self.path()))?;
        let lock = self.lock_held()?;
        let path = self.path().join("held.json");
        // One that nobody can read says nothing of the ports and devices of this change.
        let held = self.held(boot).unwrap_or_else(|_| Held::none(boot));
        let written = self.replace(&path, &change(held).text());
        drop(lock);
        written
    }

    /// The directory itself is locked for this, which takes no space on a full disk.
    fn lock_held(&self) -> Result<File, StateError> {
        let path = self.path();
        let directory = File::open(path).map_err(StateError::io("open", path))?;
        let started = Instant::now();
        loop {
            match flock(&directory, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(directory),
                Err(Errno::WOULDBLOCK) if started.elapsed() < OTHERS => thread::sleep(LOOK_AGAIN),
                Err(Errno::WOULDBLOCK) => {
                    return Err(StateError::Busy {
                        path: path.to_owned(),
                    });
                }
                Err(error) => return Err(StateError::io("lock", path)(error.into())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::regroup::{Assigned, DeviceFacts};

    fn device(vm: &str, id: &str) -> WithheldDevice {
        WithheldDevice {
            device: Assigned {
                vm: vm.to_owned(),
                id: id.to_owned(),
                function: "0000:03:00.0".parse().unwrap(),
                p2p: true,
                domain: None,
                expose: BTreeSet::new(),
                slot: None,
            },
            vmm: 7,
            good: DeviceFacts::default(),
        }
    }

    #[test]
    fn devices_are_held_until_they_are_released_or_the_machine_starts_anew() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::new(dir.path().join("state"));
        let held = |boot: &str| state.held(boot).unwrap().devices;
        for device in [
            device("web", "one"),
            device("web", "two"),
            device("db", "one"),
        ] {
            state.withhold("boot", &device).unwrap();
            state.withhold("boot", &device).unwrap();
        }
        state.release("boot", "web", "one").unwrap();
        assert_eq!(held("boot"), [device("web", "two"), device("db", "one")]);
        assert_eq!(held("another"), []);
        // What a transaction holds is another matter.
        let nothing = Baseline {
            functions: BTreeMap::new(),
            groups: Vec::new(),
            autoprobe: true,
            assigned: Vec::new(),
            exposed: BTreeSet::new(),
        };
        state.hold("boot", &nothing).unwrap();
        assert_eq!(held("boot").len(), 2);
    }

    #[test]
    fn a_file_of_a_version_that_held_ports_only_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let text = r#"{"boot": "b", "ports": {"0000:02:00.0": "auto"}}"#;
        fs::write(dir.path().join("held.json"), text).unwrap();
        let held = StateDir::new(dir.path()).held("b").unwrap();
        assert_eq!((held.ports.len(), held.devices.len()), (1, 0));
    }
}
