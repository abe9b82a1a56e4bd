//! OpenAPI document of a VMM's API.
//!
//! A test checks that `resources/openapi.json` is this document.

use serde_json::Value;

use super::call::Counters;
use super::document::{CallSpec, Description};
use super::p2p::P2pInfo;
use super::types::{P2pWindows, PciDevice, RemoveDevice, VmInfo, VmmPing};
use crate::{DeviceConfig, Record, VmConfig};

/// Error statuses and their meaning.
const ERRORS: [(&str, &str); 6] = [
    ("400", "The request is not valid for the call"),
    ("404", "There is no such VM, device or call"),
    (
        "409",
        "Refused: by policy, hardware or the VM's state; nothing was changed",
    ),
    (
        "4XX",
        "Too long (413), too slow (408), too many at once (429)",
    ),
    ("500", "The call was started and failed"),
    ("503", "The VMM is shutting down"),
];

fn calls() -> Vec<CallSpec> {
    let put = CallSpec::put;
    vec![
        CallSpec::get::<VmmPing>("vmm.ping", "Return the version of the VMM"),
        put("vmm.shutdown", "End the VMM, and the VM with it").done(200, "The VMM ends"),
        put("vm.create", "Create the VM; it does not run yet").takes::<VmConfig>(),
        put("vm.boot", "Start the VM"),
        put(
            "vm.shutdown",
            "Stop the VM at once and keep its configuration",
        ),
        put("vm.delete", "Stop the VM and delete its configuration"),
        put("vm.reboot", "Stop the VM at once and start it again"),
        put("vm.pause", "Stop the vCPUs; devices keep running"),
        put("vm.resume", "Start the vCPUs again"),
        put("vm.power-button", "Press the guest's power button"),
        CallSpec::get::<VmInfo>("vm.info", "Return configuration and state of the VM"),
        CallSpec::get::<Counters>("vm.counters", "Return the counters of all devices"),
        CallSpec::get::<P2pInfo>("vm.p2p", "Return the P2P domains, routes and exposures"),
        put(
            "vm.p2p-windows",
            "Open or close the mappings through which peers reach a device",
        )
        .takes::<P2pWindows>(),
        put("vm.add-device", "Add a device to the VM")
            .takes::<DeviceConfig>()
            .gives_or::<PciDevice>(204, "The device is added when the VM boots"),
        put("vm.remove-device", "Remove a device from the VM")
            .takes::<RemoveDevice>()
            .done(
                204,
                "The guest was asked to release the device; an event reports the removal",
            ),
        CallSpec::events::<Record>("events", "Server-sent events whose data are these objects"),
    ]
}

/// The OpenAPI document.
pub fn openapi() -> Value {
    let description = Description {
        title: "p2p-vmm",
        description: "cloud-hypervisor's API with peer-to-peer DMA: HTTP on a unix socket",
        errors: &ERRORS,
        calls: &calls(),
    };
    description.openapi()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_checked_in_document_is_current() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../resources/openapi.json");
        let now = format!("{:#}\n", openapi());
        if std::env::var_os("UPDATE_OPENAPI").is_some() {
            std::fs::write(&path, &now).unwrap();
        }
        let checked_in = std::fs::read_to_string(&path).unwrap();
        assert!(
            now == checked_in,
            "resources/openapi.json is not current: UPDATE_OPENAPI=1 cargo test -p vmm-api --features server checked_in"
        );
    }

    #[test]
    fn every_reference_resolves() {
        fn check(value: &Value, whole: &Value) {
            match value {
                Value::Object(map) => {
                    if let Some(Value::String(reference)) = map.get("$ref") {
                        let pointer = reference.strip_prefix('#').unwrap();
                        assert!(whole.pointer(pointer).is_some(), "{reference}");
                    }
                    map.values().for_each(|value| check(value, whole));
                }
                Value::Array(list) => list.iter().for_each(|value| check(value, whole)),
                _ => {}
            }
        }
        let document = openapi();
        check(&document, &document);
    }
}
