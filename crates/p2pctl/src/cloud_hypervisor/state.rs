//! VM state that the proxy records because cloud-hypervisor does not report it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use iommu_group::Sbdf;
use serde_json::Value;

use super::device::RequestedDevice;
use super::json::{devices, excludes_all};

/// Recorded state of one VM.
#[derive(Debug, Default)]
pub(super) struct RecordedState {
    /// Whether the VM had a device without mapped BARs, so that others may be like that.
    without_bars: bool,
    /// The requested settings of the devices that were added through the proxy, by path.
    requested: BTreeMap<PathBuf, RequestedDevice>,
    /// The devices whose removal was requested, by ID, and whether their BARs are mapped. From then on cloud-hypervisor
    /// no longer lists them in the configuration, even while the guest still has them.
    removals: BTreeMap<String, bool>,
    /// Functions whose removal was requested, or that left otherwise. They count as the VM's own when they
    /// return.
    departed: BTreeSet<Sbdf>,
}

impl RecordedState {
    /// State of a VM that is known to have devices without mapped BARs.
    pub(super) fn without_bars() -> Self {
        Self {
            without_bars: true,
            ..Self::default()
        }
    }

    /// Whether the VM may have devices without mapped BARs.
    pub(super) fn may_lack_bars(&self) -> bool {
        self.without_bars
    }

    /// The requested settings of a device that was added through the proxy.
    pub(super) fn requested_as(&self, path: &Path) -> Option<&RequestedDevice> {
        self.requested.get(path)
    }

    /// A device with P2P whose BARs are not mapped, so that peers cannot reach it. `config` is the VM's configuration.
    pub(super) fn peer_without_bars(&self, config: &Value) -> Option<String> {
        let paths = devices(config).filter(|device| excludes_all(device));
        let mut paths = paths.filter_map(|device| device.get("path")?.as_str());
        let requested = |path: &&str| {
            self.requested_as(Path::new(path))
                .is_some_and(|requested| requested.p2p)
        };
        paths.find(requested).map(str::to_owned)
    }

    /// Records that a new VM with these devices was created, which no device has left yet.
    pub(super) fn created(&mut self, config: &Value, requested: &[RequestedDevice]) {
        self.departed.clear();
        self.record(config);
        self.added(requested);
    }

    /// Records that these devices are added.
    pub(super) fn added(&mut self, requested: &[RequestedDevice]) {
        let by_path = requested
            .iter()
            .filter_map(|device| Some((device.path.clone()?, device.clone())));
        self.requested.extend(by_path);
    }

    /// Records facts from the VM's configuration before the VM is changed.
    pub(super) fn record(&mut self, config: &Value) {
        self.without_bars |= devices(config).any(excludes_all);
    }

    /// Records that the removal of a device is requested.
    pub(super) fn removal(&mut self, config: &Value, id: &str) {
        let named = |device: &&Value| device.get("id").and_then(Value::as_str) == Some(id);
        if let Some(device) = devices(config).find(named) {
            self.removals.insert(id.to_owned(), !excludes_all(device));
            let path = device.get("path").and_then(Value::as_str).map(Path::new);
            self.departed.extend(path.and_then(function));
        }
    }

    /// Records that a function left the VM.
    pub(super) fn left(&mut self, function: Sbdf) {
        self.departed.insert(function);
    }

    /// The functions whose removal was requested, or that left otherwise.
    pub(super) fn departed(&self) -> &BTreeSet<Sbdf> {
        &self.departed
    }

    /// A device whose removal was requested, that the guest still has, and that can reach the new device or be reached
    /// by it. `info` is the answer to `vm.info`; `mapped` is true if the BARs of the new device are mapped.
    pub(super) fn leaving(&mut self, info: &Value, mapped: bool) -> Option<String> {
        let there = info.get("device_tree").and_then(Value::as_object);
        self.removals
            .retain(|id, _| there.is_some_and(|there| there.contains_key(id)));
        let config = info.get("config").unwrap_or(&Value::Null);
        let again = |id: &str| {
            devices(config).any(|device| device.get("id").and_then(Value::as_str) == Some(id))
        };
        let reaching = self
            .removals
            .iter()
            .find(|(id, open)| (mapped || **open) && !again(id));
        reaching.map(|(id, _)| id.clone())
    }
}

/// The function of a sysfs directory, which may be a link.
fn function(path: &Path) -> Option<Sbdf> {
    let name = |path: &Path| path.file_name()?.to_str()?.parse().ok();
    name(path).or_else(|| name(&path.canonicalize().ok()?))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::json::{ALL_BARS, EXCLUDED};
    use super::*;

    /// Answer to `vm.info` of a VM that lists these devices and has these in its device tree.
    fn info(listed: &[Value], tree: &[&str]) -> Value {
        let tree = tree.iter().map(|id| ((*id).to_owned(), json!({"id": id})));
        json!({"config": {"devices": listed},
            "device_tree": tree.collect::<serde_json::Map<_, _>>()})
    }

    #[test]
    fn what_was_asked_back_is_there_until_the_tree_has_it_no_more() {
        let mut state = RecordedState::default();
        let device = json!({"id": "left", "path": "/sys/bus/pci/devices/0000:03:00.0"});
        state.removal(&json!({"devices": [&device]}), "left");
        state.removal(&json!({"devices": [&device]}), "disk");
        let departed: Vec<String> = state.departed().iter().map(Sbdf::to_string).collect();
        assert_eq!(departed, ["0000:03:00.0"]);
        // The removal failed: the device is listed as before.
        assert_eq!(
            state.leaving(&info(&[device], &["left", "disk"]), true),
            None
        );
        let removals = info(&[], &["left", "disk"]);
        for mapped in [true, false] {
            let leaving = state.leaving(&removals, mapped);
            assert_eq!(leaving.as_deref(), Some("left"));
        }
        assert_eq!(state.leaving(&info(&[], &["disk"]), true), None);
        assert_eq!(state.leaving(&removals, true), None, "another of that id");
    }

    #[test]
    fn a_peer_that_came_without_its_bars_stays_known() {
        let mut state = RecordedState::default();
        let device = |path: &str| json!({"path": path, EXCLUDED: ALL_BARS});
        let config = json!({"devices": [device("/stranger"), device("/peer"), {"path": "/open"}]});
        for (path, p2p) in [("/open", true), ("/stranger", false)] {
            let requested = RequestedDevice::of_json(&json!({"path": path, "p2p": p2p}), false);
            state.added(&[requested.unwrap()]);
            assert_eq!(state.peer_without_bars(&config), None);
        }
        for (path, p2p) in [("/peer", true), ("/other", false)] {
            let requested = RequestedDevice::of_json(&json!({"path": path, "p2p": p2p}), false);
            state.added(&[requested.unwrap()]);
            assert_eq!(state.peer_without_bars(&config).as_deref(), Some("/peer"));
        }
        assert_eq!(state.peer_without_bars(&json!({"devices": []})), None);
    }

    #[test]
    fn without_bars_it_reaches_nobody_else_without_bars() {
        let mut state = RecordedState::default();
        let config = json!({"devices": [{"id": "left", EXCLUDED: ALL_BARS}]});
        assert!(!state.may_lack_bars());
        state.record(&config);
        assert!(state.may_lack_bars());
        state.removal(&config, "left");
        let removals = info(&[], &["left"]);
        assert_eq!(state.leaving(&removals, false), None);
        assert_eq!(state.leaving(&removals, true).as_deref(), Some("left"));
    }
}
