//! The OpenAPI document of the API, made from the types that are parsed and answered.
//!
//! `resources/openapi.json` is this document; a test says so.

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::call::Counters;
use super::p2p::P2pInfo;
use super::types::{P2pWindows, PciDevice, RemoveDevice, VmInfo, VmmPing};
use crate::{DeviceConfig, Record, VmConfig};

/// HTTP's verb of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verb {
    Get,
    Put,
}

/// How a type is described.
type Describe = fn(&mut SchemaGenerator) -> Value;

/// A call as a client sees it.
struct CallSpec {
    name: &'static str,
    verb: Verb,
    summary: &'static str,
    body: Option<Describe>,
    /// What is in the body of the answer 200.
    answer: Option<(&'static str, Describe)>,
    /// What an answer without a body means, and its status.
    done: Option<(u16, &'static str)>,
}

const JSON: &str = "application/json";
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

fn of<T: JsonSchema>(generator: &mut SchemaGenerator) -> Value {
    generator.subschema_for::<T>().to_value()
}

fn get<T: JsonSchema>(name: &'static str, summary: &'static str) -> CallSpec {
    CallSpec {
        name,
        verb: Verb::Get,
        summary,
        body: None,
        answer: Some((JSON, of::<T>)),
        done: None,
    }
}

fn put(name: &'static str, summary: &'static str) -> CallSpec {
    CallSpec {
        name,
        verb: Verb::Put,
        summary,
        body: None,
        answer: None,
        done: Some((204, "Done")),
    }
}

fn calls() -> Vec<CallSpec> {
    vec![
        get::<VmmPing>("vmm.ping", "Whether the VMM is there, and which it is"),
        CallSpec {
            done: Some((200, "The VMM ends")),
            ..put("vmm.shutdown", "End the VMM, and the VM with it")
        },
        CallSpec {
            body: Some(of::<VmConfig>),
            ..put("vm.create", "Describe the VM; it is not yet built")
        },
        put("vm.boot", "Build the VM and run it"),
        put("vm.shutdown", "Stop the VM at once; its description stays"),
        put("vm.delete", "Stop the VM and forget its description"),
        put("vm.reboot", "Stop the VM at once and run it again"),
        put("vm.pause", "Stop the vCPUs; devices go on"),
        put("vm.resume", "Let the vCPUs go on"),
        put("vm.power-button", "Press the guest's power button"),
        get::<VmInfo>("vm.info", "How the VM is"),
        get::<Counters>("vm.counters", "What there is to count, by device"),
        get::<P2pInfo>("vm.p2p", "Who may reach whom, and how"),
        CallSpec {
            body: Some(of::<P2pWindows>),
            ..put(
                "vm.p2p-windows",
                "Let the peers of a device reach it, or no more until it is said again",
            )
        },
        CallSpec {
            body: Some(of::<DeviceConfig>),
            answer: Some((JSON, of::<PciDevice>)),
            done: Some((204, "It will be there when the VM boots")),
            ..put("vm.add-device", "Add a device to the VM")
        },
        CallSpec {
            body: Some(of::<RemoveDevice>),
            done: Some((
                204,
                "The guest was asked to let go; an event says when it has",
            )),
            ..put("vm.remove-device", "Remove a device from the VM")
        },
        CallSpec {
            answer: Some(("text/event-stream", of::<Record>)),
            ..get::<Record>(
                "events",
                "What happens, as server-sent events whose data are these objects",
            )
        },
    ]
}

/// The document.
pub fn openapi() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.definitions_path = "/components/schemas".into();
        settings.meta_schema = None;
    });
    let mut generator = settings.into_generator();
    let paths: Map<String, Value> = calls()
        .iter()
        .map(|call| (format!("/{}", call.name), path(call, &mut generator)))
        .collect();
    let responses: Map<String, Value> = ERRORS
        .iter()
        .map(|(status, meaning)| (format!("E{status}"), error(meaning)))
        .collect();
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "p2p-vmm",
            "description": "cloud-hypervisor's API with peer-to-peer DMA: HTTP on a unix socket",
            "version": env!("CARGO_PKG_VERSION"),
            "license": { "name": "Apache-2.0 OR BSD-3-Clause", "identifier": "Apache-2.0 OR BSD-3-Clause" },
        },
        "servers": [{ "url": "http://localhost/api/v1" }],
        "paths": paths,
        "components": {
            "responses": responses,
            "schemas": generator.take_definitions(true),
        },
    })
}

fn path(call: &CallSpec, generator: &mut SchemaGenerator) -> Value {
    let mut responses = Map::new();
    if let Some((status, meaning)) = call.done {
        responses.insert(status.to_string(), json!({ "description": meaning }));
    }
    if let Some((kind, describe)) = call.answer {
        let schema = describe(generator);
        let answer = json!({ "description": "Done", "content": { kind: { "schema": schema } } });
        responses.insert("200".to_owned(), answer);
    }
    for (status, _) in ERRORS {
        let reference = format!("#/components/responses/E{status}");
        responses.insert(status.to_owned(), json!({ "$ref": reference }));
    }
    let mut operation = Map::from_iter([
        ("operationId".to_owned(), json!(call.name)),
        ("summary".to_owned(), json!(call.summary)),
        ("responses".to_owned(), Value::Object(responses)),
    ]);
    if let Some(describe) = call.body {
        let schema = describe(generator);
        let body = json!({ "required": true, "content": { JSON: { "schema": schema } } });
        operation.insert("requestBody".to_owned(), body);
    }
    let verb = match call.verb {
        Verb::Get => "get",
        Verb::Put => "put",
    };
    json!({ verb: operation })
}

/// Errors are lists of messages, from the top to the cause.
fn error(meaning: &str) -> Value {
    let schema = json!({ "type": "array", "items": { "type": "string" }, "minItems": 1 });
    json!({ "description": meaning, "content": { JSON: { "schema": schema } } })
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
            "resources/openapi.json is not current: UPDATE_OPENAPI=1 cargo test -p hotplug --features server document"
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
