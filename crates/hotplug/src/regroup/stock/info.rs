//! What is taken from `vm.info` of cloud-hypervisor. All else there is none of our business, and differs by version.

use std::path::{Path, PathBuf};

use iommu_group::Sbdf;
use serde_json::{Map, Value, json};

use crate::regroup::vmm::Assigned;

/// Where the kernel shows functions.
const DEVICES: &str = "/sys/bus/pci/devices";

/// Keys of a device's description that an [`Assigned`] has places of its own for, or that no client can set again.
const OWN: [&str; 4] = ["id", "path", "fd", "x_nv_gpudirect_clique"];

/// The key for BARs that are mapped for nobody, and all that there may be.
pub(super) const EXCLUDED: &str = "x_exclude_mmap_bars";
const BARS: [u64; 6] = [0, 1, 2, 3, 4, 5];

/// The answer to `vm.info`; of a VM that there is not, null.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Info(Value);

/// A device that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Device {
    pub(super) id: String,
    pub(super) function: Sbdf,
    /// Whether any of its BARs is mapped for the others.
    pub(super) p2p: bool,
    /// The rest of its description, in JSON, with the number of its slot.
    pub(super) slot: Option<String>,
}

/// What there is of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Found {
    Plugged(Device),
    /// It was asked to go, and the guest has not let go of it yet.
    Leaving,
    Absent,
}

impl Info {
    pub(super) fn new(answer: Value) -> Self {
        Self(answer)
    }

    /// What the VM was asked to be.
    pub(super) fn config(&self) -> &Value {
        self.0.get("config").unwrap_or(&Value::Null)
    }

    /// Whether BARs are mapped for other devices of the VM, unless a device is excepted. Versions before v52 know of no
    /// other way.
    pub(super) fn maps_bars(&self) -> bool {
        let switch = self.0.pointer("/config/platform/vfio_p2p_dma");
        switch.and_then(Value::as_bool) != Some(false)
    }

    /// The devices that were asked for and not asked to go.
    pub(super) fn plugged(&self) -> Vec<Device> {
        let devices = self.0.pointer("/config/devices").and_then(Value::as_array);
        devices
            .into_iter()
            .flatten()
            .filter_map(|device| self.device(device))
            .collect()
    }

    pub(super) fn find(&self, id: &str) -> Found {
        let plugged = self.plugged().into_iter().find(|device| device.id == id);
        match plugged {
            Some(device) => Found::Plugged(device),
            None if self.node(id).is_some() => Found::Leaving,
            None => Found::Absent,
        }
    }

    fn node(&self, id: &str) -> Option<&Value> {
        self.0.get("device_tree")?.get(id)
    }

    fn device(&self, device: &Value) -> Option<Device> {
        let text = |key: &str| device.get(key).and_then(Value::as_str);
        let id = text("id")?.to_owned();
        let all = excludes_all(device);
        let mut rest = device.as_object()?.clone();
        rest.retain(|key, _| !(OWN.contains(&key.as_str()) || all && key == EXCLUDED));
        if let Some(number) = self.slot_number(&id) {
            rest.insert("pci_device_id".to_owned(), json!(number));
        }
        Some(Device {
            function: function(Path::new(text("path")?))?,
            p2p: self.maps_bars() && !all,
            slot: (!rest.is_empty()).then(|| Value::Object(rest).to_string()),
            id,
        })
    }

    /// The device number on its bus in the guest: `0000:00:06.0` is number 6.
    fn slot_number(&self, id: &str) -> Option<u8> {
        let bdf = self.node(id)?.get("pci_bdf")?.as_str()?;
        let device = bdf.rsplit_once(':')?.1.split_once('.')?.0;
        u8::from_str_radix(device, 16).ok()
    }
}

/// A function by its directory, which may be a link.
fn function(path: &Path) -> Option<Sbdf> {
    let name = |path: &Path| path.file_name()?.to_str()?.parse().ok();
    name(path).or_else(|| name(&path.canonicalize().ok()?))
}

fn excludes_all(device: &Value) -> bool {
    let excluded = device.get(EXCLUDED).and_then(Value::as_array);
    let has = |bar: &u64| {
        excluded.is_some_and(|bars| bars.iter().any(|excluded| excluded.as_u64() == Some(*bar)))
    };
    BARS.iter().all(has)
}

/// How a device is asked for, with what only this project knows of it.
pub(super) fn description(device: &Assigned) -> Value {
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
