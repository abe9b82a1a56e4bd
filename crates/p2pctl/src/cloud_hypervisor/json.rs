//! The fields of cloud-hypervisor's API JSON that the constraints depend on.
//!
//! All other fields are forwarded unchanged.

use std::collections::BTreeSet;

use iommu_group::Sbdf;
use serde::Deserialize;
use serde_json::Value;

use super::constraints::VmOptions;
use super::device::RequestedDevice;
use super::memory::GuestMemory;
use super::option_list::OptionList;

/// Device fields of this project that cloud-hypervisor does not know.
const OURS: [&str; 3] = ["p2p", "p2p_domain", "expose"];

/// Key of the BARs that are not mapped; accesses of the guest to them are trapped. The value that excludes all BARs
/// follows.
pub(super) const EXCLUDED: &str = "x_exclude_mmap_bars";
pub(super) const ALL_BARS: [u64; 6] = [0, 1, 2, 3, 4, 5];

/// The devices in a VM's configuration.
pub(super) fn devices(config: &Value) -> impl Iterator<Item = &Value> {
    let devices = config.get("devices").and_then(Value::as_array);
    devices.into_iter().flatten()
}

/// Whether no BAR of the device is mapped.
pub(super) fn excludes_all(device: &Value) -> bool {
    let excluded = device.get(EXCLUDED).and_then(Value::as_array);
    let has = |bar: &u64| excluded.is_some_and(|bars| bars.contains(&Value::from(*bar)));
    ALL_BARS.iter().all(has)
}

/// Checks the JSON types in a VM's configuration. serde parses an array as a struct, so cloud-hypervisor would accept
/// it.
pub(super) fn well_formed(config: &Value) -> Result<(), String> {
    let is_list = |value: &Value| {
        let all = value.as_array();
        all.is_some_and(|all| all.iter().all(Value::is_object))
    };
    let check = |path: &str, is_right: &dyn Fn(&Value) -> bool, kind: &str| {
        let value = config.pointer(path).unwrap_or(&Value::Null);
        let name = path.trim_start_matches('/').replace('/', ".");
        match value.is_null() || is_right(value) {
            true => Ok(()),
            false => Err(format!("{name} is not a {kind}")),
        }
    };
    for path in ["/platform", "/cpus", "/memory"] {
        check(path, &Value::is_object, "JSON object")?;
    }
    for path in ["/memory/zones", "/devices", "/vdpa"] {
        check(path, &is_list, "list of objects")?;
    }
    Ok(())
}

impl RequestedDevice {
    /// Parses a device's configuration. `p2p` is the default of its `p2p` field.
    pub(crate) fn of_json(device: &Value, p2p: bool) -> Result<Self, String> {
        if !device.is_object() {
            return Err("a device is a JSON object".to_owned());
        }
        let fields = DeviceFields::deserialize(device);
        let fields = fields.map_err(|error| format!("a device: {error}"))?;
        let p2p = fields.p2p.unwrap_or(p2p);
        if fields.p2p_domain.is_some() && !p2p {
            return Err("p2p_domain needs p2p: true".to_owned());
        }
        let mut options = OptionList::default();
        for (key, text) in [("id", &fields.id), ("path", &fields.path)] {
            if let Some(text) = text {
                options.set(key, text);
            }
        }
        Ok(Self {
            options,
            path: fields.path.map(Into::into),
            p2p,
            domain: fields.p2p_domain,
            expose: fields.expose.unwrap_or_default(),
            viommu: fields.iommu.unwrap_or(false),
            clique: fields
                .x_nv_gpudirect_clique
                .map(|clique| clique.to_string()),
        })
    }
}

/// The fields of a device that the constraints depend on.
#[derive(Deserialize)]
struct DeviceFields {
    id: Option<String>,
    path: Option<String>,
    p2p: Option<bool>,
    p2p_domain: Option<String>,
    expose: Option<BTreeSet<Sbdf>>,
    iommu: Option<bool>,
    x_nv_gpudirect_clique: Option<Value>,
}

/// Removes the fields that cloud-hypervisor does not know from a device's configuration.
pub(crate) fn strip(device: &mut Value) {
    if let Some(fields) = device.as_object_mut() {
        fields.retain(|key, _| !OURS.contains(&key.as_str()));
    }
}

/// The VM options in a configuration that the constraints depend on.
pub(crate) fn vm_options(config: &Value) -> VmOptions {
    let number = |path: &str| config.pointer(path).and_then(Value::as_u64);
    VmOptions {
        p2p_dma: config
            .pointer("/platform/vfio_p2p_dma")
            .and_then(Value::as_bool),
        bits: number("/cpus/max_phys_bits").and_then(|bits| bits.try_into().ok()),
        memory: memory(config.get("memory")),
    }
}

fn memory(memory: Option<&Value>) -> Option<GuestMemory> {
    let Some(memory) = memory.filter(|memory| !memory.is_null()) else {
        return Some(GuestMemory::default());
    };
    let zones = memory.get("zones").and_then(Value::as_array);
    let mut total = GuestMemory {
        boot: 0,
        plugged: 0,
    };
    for part in std::iter::once(memory).chain(zones.into_iter().flatten()) {
        let bytes = |key: &str| part.get(key).and_then(Value::as_u64);
        total = total.and(bytes("size").unwrap_or(0), bytes("hotplug_size"))?;
    }
    Some(total)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_device_is_what_the_command_line_would_make_of_it() {
        let device = json!({"path": "/a", "id": "x", "p2p": true, "p2p_domain": "left",
            "expose": ["0000:04:00.0"],
            "x_nv_gpudirect_clique": 3, "iommu": false, "pci_segment": 1});
        let requested = RequestedDevice::of_json(&device, false).unwrap();
        let written = RequestedDevice::parse(
            "id=x,path=/a,p2p=on,p2p_domain=left,expose=04:00.0,x_nv_gpudirect_clique=3",
        );
        let mut written = written.unwrap();
        written.options.take("x_nv_gpudirect_clique");
        assert_eq!(requested, written);
        assert!(
            RequestedDevice::of_json(&json!({"path": "/a"}), true)
                .unwrap()
                .p2p
        );
        assert!(RequestedDevice::of_json(&json!({"path": "/a", "p2p": "on"}), true).is_err());
        assert!(
            RequestedDevice::of_json(&json!({"path": "/a", "p2p_domain": "x"}), false).is_err()
        );
        assert!(
            RequestedDevice::of_json(&json!({"path": "/a", "expose": ["all"]}), false).is_err()
        );
    }

    #[test]
    fn only_what_is_ours_is_taken_out() {
        let mut device = json!({"path": "/a", "p2p": false, "new_field": [1]});
        strip(&mut device);
        assert_eq!(device, json!({"path": "/a", "new_field": [1]}));
    }

    #[test]
    fn wishes_are_those_of_the_command_line() {
        let config = json!({
            "platform": {"vfio_p2p_dma": false},
            "cpus": {"boot_vcpus": 1, "max_phys_bits": 39},
            "memory": {"size": 0, "zones": [{"id": "a", "size": 1 << 30}, {"id": "b", "size": 1 << 30}]},
        });
        let vm_options = vm_options(&config);
        assert_eq!(
            (vm_options.p2p_dma, vm_options.bits),
            (Some(false), Some(39))
        );
        assert_eq!(vm_options.memory.map(|memory| memory.boot), Some(2 << 30));
        let none = super::vm_options(&json!({"memory": null}));
        assert_eq!(
            (none.p2p_dma, none.bits, none.memory),
            (None, None, Some(GuestMemory::default()))
        );
        let huge = json!({"memory": {"size": u64::MAX, "zones": [{"size": u64::MAX}]}});
        assert_eq!(super::vm_options(&huge).memory, None);
    }
}
