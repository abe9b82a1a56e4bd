//! What a front has seen of its VM, and cloud-hypervisor does not tell.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use iommu_group::Sbdf;
use serde_json::Value;

use super::device::Asked;
use super::json::{devices, excludes_all};

/// Of one VM.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// A device was there without its BARs, so others may be.
    without_bars: bool,
    /// What was asked for, for the devices that came this way, by their paths.
    asked: BTreeMap<PathBuf, Asked>,
    /// Devices that were asked back, by their ids, and whether their BARs are mapped. cloud-hypervisor's description of the
    /// VM has them no more from then on, whether the guest lets go of them or not.
    asked_back: BTreeMap<String, bool>,
    /// Functions that were asked back, or left another way. They count as the VM's own when they come again.
    departed: BTreeSet<Sbdf>,
}

impl Seen {
    /// A VM of which it is known that devices are there without their BARs.
    pub(super) fn without_bars() -> Self {
        Self {
            without_bars: true,
            ..Self::default()
        }
    }

    /// Whether devices may come without their BARs.
    pub(super) fn may_lack_bars(&self) -> bool {
        self.without_bars
    }

    /// What was asked for, for a device that came this way.
    pub(super) fn asked_for(&self, path: &Path) -> Option<&Asked> {
        self.asked.get(path)
    }

    /// A device that asked for P2P and has no BARs for a peer; `config` is the description of the VM.
    pub(super) fn peer_without_bars(&self, config: &Value) -> Option<String> {
        let paths = devices(config).filter(|device| excludes_all(device));
        let mut paths = paths.filter_map(|device| device.get("path")?.as_str());
        let asked = |path: &&str| {
            self.asked_for(Path::new(path))
                .is_some_and(|asked| asked.p2p)
        };
        paths.find(asked).map(str::to_owned)
    }

    /// Another VM is described: it has had nothing yet.
    pub(super) fn created(&mut self) {
        self.departed.clear();
    }

    /// These come to the VM.
    pub(super) fn come(&mut self, asked: &[Asked]) {
        let by_path = asked
            .iter()
            .filter_map(|device| Some((device.path.clone()?, device.clone())));
        self.asked.extend(by_path);
    }

    /// The description of the VM, before something is done to it.
    pub(super) fn look(&mut self, config: &Value) {
        self.without_bars |= devices(config).any(excludes_all);
    }

    /// A device is asked back.
    pub(super) fn removal(&mut self, config: &Value, id: &str) {
        let named = |device: &&Value| device.get("id").and_then(Value::as_str) == Some(id);
        if let Some(device) = devices(config).find(named) {
            self.asked_back.insert(id.to_owned(), !excludes_all(device));
            let path = device.get("path").and_then(Value::as_str).map(Path::new);
            self.departed.extend(path.and_then(function));
        }
    }

    /// A function that left the VM.
    pub(super) fn left(&mut self, function: Sbdf) {
        self.departed.insert(function);
    }

    /// The functions that the VM had and was asked for, or has no more.
    pub(super) fn departed(&self) -> &BTreeSet<Sbdf> {
        &self.departed
    }

    /// A device that was asked back and is still in the VM, if it could reach a device that comes, or that one it.
    /// `info` is what the VM says of itself; what comes has BARs that are mapped, or not.
    pub(super) fn leaving(&mut self, info: &Value, mapped: bool) -> Option<String> {
        let there = info.get("device_tree").and_then(Value::as_object);
        self.asked_back
            .retain(|id, _| there.is_some_and(|there| there.contains_key(id)));
        let config = info.get("config").unwrap_or(&Value::Null);
        let again = |id: &str| {
            devices(config).any(|device| device.get("id").and_then(Value::as_str) == Some(id))
        };
        let reaching = self
            .asked_back
            .iter()
            .find(|(id, open)| (mapped || **open) && !again(id));
        reaching.map(|(id, _)| id.clone())
    }
}

/// A function by its directory, which may be a link.
fn function(path: &Path) -> Option<Sbdf> {
    let name = |path: &Path| path.file_name()?.to_str()?.parse().ok();
    name(path).or_else(|| name(&path.canonicalize().ok()?))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::json::{ALL_BARS, EXCLUDED};
    use super::*;

    /// A VM that lists these devices, and has all these.
    fn info(listed: &[Value], tree: &[&str]) -> Value {
        let tree = tree.iter().map(|id| ((*id).to_owned(), json!({"id": id})));
        json!({"config": {"devices": listed},
            "device_tree": tree.collect::<serde_json::Map<_, _>>()})
    }

    #[test]
    fn what_was_asked_back_is_there_until_the_tree_has_it_no_more() {
        let mut seen = Seen::default();
        let device = json!({"id": "left", "path": "/sys/bus/pci/devices/0000:03:00.0"});
        seen.removal(&json!({"devices": [&device]}), "left");
        seen.removal(&json!({"devices": [&device]}), "disk");
        let departed: Vec<String> = seen.departed().iter().map(Sbdf::to_string).collect();
        assert_eq!(departed, ["0000:03:00.0"]);
        // It could not be asked back: it is listed as before.
        assert_eq!(
            seen.leaving(&info(&[device], &["left", "disk"]), true),
            None
        );
        let asked_back = info(&[], &["left", "disk"]);
        for mapped in [true, false] {
            let leaving = seen.leaving(&asked_back, mapped);
            assert_eq!(leaving.as_deref(), Some("left"));
        }
        assert_eq!(seen.leaving(&info(&[], &["disk"]), true), None);
        assert_eq!(seen.leaving(&asked_back, true), None, "another of that id");
    }

    #[test]
    fn a_peer_that_came_without_its_bars_stays_known() {
        let mut seen = Seen::default();
        let device = |path: &str| json!({"path": path, EXCLUDED: ALL_BARS});
        let config = json!({"devices": [device("/stranger"), device("/peer"), {"path": "/open"}]});
        for (path, p2p) in [("/open", true), ("/stranger", false)] {
            let asked = Asked::of_json(&json!({"path": path, "p2p": p2p}), false);
            seen.come(&[asked.unwrap()]);
            assert_eq!(seen.peer_without_bars(&config), None);
        }
        for (path, p2p) in [("/peer", true), ("/other", false)] {
            let asked = Asked::of_json(&json!({"path": path, "p2p": p2p}), false);
            seen.come(&[asked.unwrap()]);
            assert_eq!(seen.peer_without_bars(&config).as_deref(), Some("/peer"));
        }
        assert_eq!(seen.peer_without_bars(&json!({"devices": []})), None);
    }

    #[test]
    fn without_bars_it_reaches_nobody_else_without_bars() {
        let mut seen = Seen::default();
        let config = json!({"devices": [{"id": "left", EXCLUDED: ALL_BARS}]});
        assert!(!seen.may_lack_bars());
        seen.look(&config);
        assert!(seen.may_lack_bars());
        seen.removal(&config, "left");
        let asked_back = info(&[], &["left"]);
        assert_eq!(seen.leaving(&asked_back, false), None);
        assert_eq!(seen.leaving(&asked_back, true).as_deref(), Some("left"));
    }
}
