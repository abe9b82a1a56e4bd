//! The used parts of cloud-hypervisor's `vm.info`. The other parts differ between versions.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use iommu_group::Sbdf;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::regroup::vmm::VmDevice;

/// Directory of the functions in sysfs.
const DEVICES: &str = "/sys/bus/pci/devices";

/// Keys of a device's configuration that an [`VmDevice`] has fields for, or that no client can set.
const OWN: [&str; 4] = ["id", "path", "fd", "x_nv_gpudirect_clique"];

/// The key for BARs that are not mapped for other devices, and all BARs.
pub(super) const EXCLUDED: &str = "x_exclude_mmap_bars";
const BARS: [u64; 6] = [0, 1, 2, 3, 4, 5];

/// The used parts of the answer to `vm.info`.
#[derive(Debug, Deserialize)]
pub(super) struct Answer {
    #[serde(default)]
    config: Config,
    #[serde(default)]
    device_tree: Option<BTreeMap<String, Node>>,
}

#[derive(Debug, Default, Deserialize)]
struct Config {
    #[serde(default)]
    memory: Value,
    #[serde(default)]
    platform: Option<Platform>,
    #[serde(default)]
    devices: Option<Vec<Map<String, Value>>>,
}

#[derive(Debug, Default, Deserialize)]
struct Platform {
    #[serde(default)]
    vfio_p2p_dma: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct Node {
    #[serde(default)]
    pci_bdf: Option<String>,
}

/// The devices and memory of a VM; empty if there is no VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Info {
    memory: Value,
    maps_bars: bool,
    plugged: BTreeMap<String, Device>,
    /// Names of all devices in the guest.
    tree: BTreeSet<String>,
}

/// A device in `config`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Device {
    pub(super) id: String,
    pub(super) function: Sbdf,
    /// Whether any of its BARs is mapped for other devices.
    pub(super) p2p: bool,
    /// The rest of its configuration, with its slot number, as JSON.
    pub(super) slot: Option<String>,
}

/// State of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Found {
    Plugged(Device),
    /// Its removal was requested, and the guest has not released it yet.
    Leaving,
    Absent,
}

impl Info {
    pub(super) fn new(answer: Answer) -> Self {
        let platform = answer.config.platform.unwrap_or_default();
        let tree = answer.device_tree.unwrap_or_default();
        let maps_bars = platform.vfio_p2p_dma != Some(false);
        let devices = answer.config.devices.unwrap_or_default().into_iter();
        let plugged = devices.filter_map(|device| Device::new(device, maps_bars, &tree));
        Self {
            memory: answer.config.memory,
            maps_bars,
            plugged: plugged.map(|device| (device.id.clone(), device)).collect(),
            tree: tree.into_keys().collect(),
        }
    }

    /// The state without a VM.
    pub(super) fn none() -> Self {
        Self {
            memory: Value::Null,
            maps_bars: true,
            plugged: BTreeMap::new(),
            tree: BTreeSet::new(),
        }
    }

    /// The configuration of the VM, as far as it determines the memory layout.
    pub(super) fn description(&self) -> Value {
        json!({ "memory": self.memory })
    }

    /// Whether BARs are mapped for other devices of the VM, except for devices that exclude theirs. Versions before v52
    /// cannot exclude BARs.
    pub(super) fn maps_bars(&self) -> bool {
        self.maps_bars
    }

    /// The devices in `config`: added, and without a removal request.
    pub(super) fn plugged(&self) -> impl ExactSizeIterator<Item = &Device> {
        self.plugged.values()
    }

    pub(super) fn find(&self, id: &str) -> Found {
        match self.plugged.get(id) {
            Some(device) => Found::Plugged(device.clone()),
            None if self.tree.contains(id) => Found::Leaving,
            None => Found::Absent,
        }
    }
}

impl Device {
    fn new(
        device: Map<String, Value>,
        maps_bars: bool,
        tree: &BTreeMap<String, Node>,
    ) -> Option<Self> {
        let text = |key: &str| device.get(key).and_then(Value::as_str);
        let id = text("id")?.to_owned();
        let function = function(Path::new(text("path")?))?;
        let all = excludes_all(&device);
        let mut rest = device;
        rest.retain(|key, _| !(OWN.contains(&key.as_str()) || all && key == EXCLUDED));
        if let Some(number) = tree.get(&id).and_then(Node::slot_number) {
            rest.insert("pci_device_id".to_owned(), json!(number));
        }
        Some(Self {
            function,
            p2p: maps_bars && !all,
            slot: (!rest.is_empty()).then(|| Value::Object(rest).to_string()),
            id,
        })
    }
}

impl Node {
    /// The device number on the guest's bus: 6 for `0000:00:06.0`.
    fn slot_number(&self) -> Option<u8> {
        let bdf = self.pci_bdf.as_ref()?;
        let device = bdf.rsplit_once(':')?.1.split_once('.')?.0;
        u8::from_str_radix(device, 16).ok()
    }
}

/// The function of a sysfs directory, which may be given by a link. Links outside of sysfs are not followed, because
/// their file system may never answer.
fn function(path: &Path) -> Option<Sbdf> {
    let name = |path: &Path| path.file_name()?.to_str()?.parse().ok();
    let mut parts = path.components();
    let in_sysfs = path.starts_with("/sys") && !parts.any(|part| part == Component::ParentDir);
    name(path).or_else(|| {
        let path = in_sysfs.then(|| path.canonicalize().ok())??;
        name(&path)
    })
}

fn excludes_all(device: &Map<String, Value>) -> bool {
    let excluded = device.get(EXCLUDED).and_then(Value::as_array);
    let has = |bar: &u64| {
        excluded.is_some_and(|bars| bars.iter().any(|excluded| excluded.as_u64() == Some(*bar)))
    };
    BARS.iter().all(has)
}

/// The configuration to add a device with, including the fields of this project.
pub(super) fn description(device: &VmDevice) -> Value {
    let slot = device.slot.as_deref().unwrap_or_default();
    let mut fields: Map<String, Value> = serde_json::from_str(slot).unwrap_or_default();
    let path: PathBuf = Path::new(DEVICES).join(device.function.to_string());
    fields.insert("path".to_owned(), json!(path));
    fields.insert("id".to_owned(), json!(device.id));
    fields.insert("p2p".to_owned(), json!(device.p2p));
    if let Some(domain) = &device.domain {
        fields.insert("p2p_domain".to_owned(), json!(domain));
    }
    if !device.expose.is_empty() {
        fields.insert("expose".to_owned(), json!(device.expose));
    }
    Value::Object(fields)
}
