//! The OpenAPI document of a VMM's API.
//!
//! `resources/openapi.json` is this document; a test says so.

use serde_json::Value;

use super::call::Counters;
use super::document::{CallSpec, Description};
use super::p2p::P2pInfo;
use super::types::{P2pWindows, PciDevice, RemoveDevice, VmInfo, VmmPing};
use crate::{DeviceConfig, Record, VmConfig};

/// Every answer that says no.
const ERRORS: [(&str, &str); 6] = [
    ("400", "The request is not what the call needs"),
    ("404", "There is no such VM, device or call"),
    (
        "409",
        "Refused: by policy, hardware or the VM's state; nothing was changed",
    ),
    (
        "4XX",
        "Too long (413), too slow (408), too many at once (429)",
    ),
    ("500", "It was tried and did not work"),
    ("503", "The VMM is shutting down"),
];

fn calls() -> Vec<CallSpec> {
    let put = CallSpec::put;
    vec![
        CallSpec::get::<VmmPing>("vmm.ping", "Whether the VMM is there, and which it is"),
        put("vmm.shutdown", "End the VMM, and the VM with it").done(200, "The VMM ends"),
        put("vm.create", "Describe the VM; it is not yet built").takes::<VmConfig>(),
        put("vm.boot", "Build the VM and run it"),
        put("vm.shutdown", "Stop the VM at once; its description stays"),
        put("vm.delete", "Stop the VM and forget its description"),
        put("vm.reboot", "Stop the VM at once and run it again"),
        put("vm.pause", "Stop the vCPUs; devices go on"),
        put("vm.resume", "Let the vCPUs go on"),
        put("vm.power-button", "Press the guest's power button"),
        CallSpec::get::<VmInfo>("vm.info", "How the VM is"),
        CallSpec::get::<Counters>("vm.counters", "What there is to count, by device"),
        CallSpec::get::<P2pInfo>("vm.p2p", "Who may reach whom, and how"),
        put(
            "vm.p2p-windows",
            "Let the peers of a device reach it, or no more until it is said again",
        )
        .takes::<P2pWindows>(),
        put("vm.add-device", "Add a device to the VM")
            .takes::<DeviceConfig>()
            .gives_or::<PciDevice>(204, "It will be there when the VM boots"),
        put("vm.remove-device", "Remove a device from the VM")
            .takes::<RemoveDevice>()
            .done(
                204,
                "The guest was asked to let go; an event says when it has",
            ),
        CallSpec::events::<Record>(
            "events",
            "What happens, as server-sent events whose data are these objects",
        ),
    ]
}

/// The document.
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
    fn the_document_that_is_checked_in_is_this_one() {
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
    fn every_reference_leads_somewhere() {
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
