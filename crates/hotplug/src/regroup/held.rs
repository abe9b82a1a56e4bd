//! The ports that are kept awake for settings that the kernel would undo.

use std::collections::BTreeMap;
use std::fs;
use std::io;

use iommu_group::Sbdf;
use serde::{Deserialize, Serialize};

use super::baseline::Baseline;
use super::error::StateError;
use super::machine::POWER;
use super::state_dir::StateDir;

/// The ports that are kept awake.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Held {
    /// What the kernel calls the start of the machine in which they are.
    pub(super) boot: String,
    /// What `power/control` of each port was.
    pub(super) ports: BTreeMap<Sbdf, String>,
}

impl Held {
    fn none(boot: &str) -> Self {
        Self {
            boot: boot.to_owned(),
            ports: BTreeMap::new(),
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

    fn text(&self) -> Vec<u8> {
        let mut text = serde_json::to_vec_pretty(self).unwrap_or_default();
        text.push(b'\n');
        text
    }
}

impl StateDir {
    /// The ports that are kept awake in this start of the machine.
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
        let path = self.path().join("held.json");
        // One that nobody can read says nothing of the ports of this transaction.
        let held = self.held(boot).unwrap_or_else(|_| Held::none(boot));
        self.replace(&path, &held.after(baseline).text())
    }
}
