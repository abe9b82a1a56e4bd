//! State that is kept between transactions: ports that are kept awake because the kernel would reset their settings on
//! wakeup, and devices that are withheld from their VMs.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::time::Duration;

use iommu_group::Sbdf;
use serde::{Deserialize, Serialize};

use super::error::StateError;
use super::snapshot::Snapshot;
use super::state_dir::{StateDir, lock_within};
use super::sysfs_ops::POWER;
use super::withheld::WithheldDevice;

/// Time that another process may hold the lock.
const LOCK_TIME: Duration = Duration::from_secs(5);

/// The held ports and devices.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Held {
    /// Boot ID of the boot in which they are kept awake.
    pub(super) boot: String,
    /// Original value of `power/control` by port.
    pub(super) ports: BTreeMap<Sbdf, String>,
    /// The devices that are withheld from their VMs.
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

    /// The held ports after a transaction has ended.
    pub(super) fn after(mut self, snapshot: &Snapshot) -> Self {
        for (port, was) in snapshot.with(|involvement| involvement.awake || involvement.removed) {
            let power = was.rest.clone();
            let power = power.or_else(|| was.attributes.get(POWER).cloned());
            match power.filter(|_| was.involvement.held) {
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
    /// The held ports and devices in the current boot.
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
        // A reboot resets `power/control` and the settings.
        Ok(if held.boot == boot {
            held
        } else {
            Held::none(boot)
        })
    }

    /// Writes the replacement file in advance, so that [`hold`](Self::hold) needs no disk space.
    pub(super) fn prepare_held(&self, held: &Held) -> Result<(), StateError> {
        let path = self.path().join("held.json");
        self.replacement(&path, &held.text()).map(drop)
    }

    /// Records the ports that are kept awake: those of earlier transactions and those of the one that has ended.
    pub(super) fn hold(&self, boot: &str, snapshot: &Snapshot) -> Result<(), StateError> {
        self.change_held(boot, |held| held.after(snapshot))
    }

    /// Records that a device is withheld from its VM.
    pub(super) fn withhold(&self, boot: &str, device: &WithheldDevice) -> Result<(), StateError> {
        self.change_held(boot, |held| {
            let mut held = held.without(&device.device.vm, &device.device.id);
            held.devices.push(device.clone());
            held
        })
    }

    /// Records that a device is no longer withheld from its VM.
    pub(super) fn release(&self, boot: &str, vm: &str, id: &str) -> Result<(), StateError> {
        self.change_held(boot, |held| held.without(vm, id))
    }

    /// Changes the file, under a lock against other processes.
    fn change_held(&self, boot: &str, change: impl FnOnce(Held) -> Held) -> Result<(), StateError> {
        fs::create_dir_all(self.path()).map_err(StateError::io("create", self.path()))?;
        let lock = self.lock_held()?;
        let path = self.path().join("held.json");
        // If the file cannot be read, at least the ports and devices of this change are recorded.
        let held = self.held(boot).unwrap_or_else(|_| Held::none(boot));
        let written = self.replace(&path, &change(held).text());
        drop(lock);
        written
    }

    /// Locks the directory itself, which needs no space on a full disk.
    fn lock_held(&self) -> Result<File, StateError> {
        let path = self.path();
        let directory = File::open(path).map_err(StateError::io("open", path))?;
        lock_within(&directory, path, LOCK_TIME)?;
        Ok(directory)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::regroup::{DeviceFacts, VmDevice};

    fn device(vm: &str, id: &str) -> WithheldDevice {
        WithheldDevice {
            device: VmDevice {
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
    fn devices_are_withheld_until_they_are_released_or_a_reboot() {
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
        // A transaction does not change the withheld devices.
        let nothing = Snapshot {
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
    fn a_file_of_the_version_without_devices_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let text = r#"{"boot": "b", "ports": {"0000:02:00.0": "auto"}}"#;
        fs::write(dir.path().join("held.json"), text).unwrap();
        let held = StateDir::new(dir.path()).held("b").unwrap();
        assert_eq!((held.ports.len(), held.devices.len()), (1, 0));
    }
}
