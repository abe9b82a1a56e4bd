//! OpenAPI document of the daemon's API.
//!
//! A test checks that `resources/openapi-daemon.json` is this document.

use hotplug::regroup::{Forecast, Report, ResetDone, ResetOrder};
use schemars::JsonSchema;
use serde_json::Value;
use vmm_api::{CallSpec, Description, Record};

use super::messages::{AcsRequest, Apply, Check, GuestList, Ping, PlanRequest, StartedTransaction};
use crate::json::StatusDocument;

/// Error statuses and their meaning.
const ERRORS: [(&str, &str); 5] = [
    ("400", "The request is invalid"),
    ("404", "The call or the transaction does not exist"),
    ("409", "Refused for these reasons; nothing was changed"),
    (
        "4XX",
        "Body too long (413), request too slow (408), too many requests at once (429)",
    ),
    ("500", "The call failed"),
];

/// The document that the command of the same name prints with --json: crates/p2pctl/JSON.md
#[derive(JsonSchema)]
#[expect(dead_code, reason = "only its schema is used")]
struct Printed {
    schema: String,
}

/// An empty body.
#[derive(JsonSchema)]
#[serde(deny_unknown_fields)]
struct Empty {}

fn calls() -> Vec<CallSpec> {
    let put = CallSpec::put;
    vec![
        CallSpec::get::<Ping>("ping", "The daemon's release and process ID"),
        CallSpec::get::<GuestList>("guests", "The virtual machines that the daemon knows"),
        CallSpec::get::<Printed>("topology", "The PCI functions of the host"),
        CallSpec::get::<Printed>("groups", "The IOMMU groups and their members"),
        CallSpec::get::<Printed>("matrix", "Which devices can reach each other, with reasons"),
        put(
            "plan",
            "The plan for goals, with all effects; changes nothing",
        )
        .takes::<PlanRequest>()
        .gives::<Printed>(),
        put(
            "check",
            "The effects that a plan would have now; changes nothing",
        )
        .takes::<Check>()
        .gives::<Forecast>(),
        put("apply", "Start to carry out a plan")
            .takes::<Apply>()
            .gives::<StartedTransaction>(),
        put(
            "acs",
            "Start to set the ACS control of several ports, in one transaction",
        )
        .takes::<AcsRequest>()
        .gives::<StartedTransaction>(),
        put(
            "reset",
            "Reset a function, if the caller owns all affected functions and none is in use",
        )
        .takes::<ResetOrder>()
        .gives::<ResetDone>(),
        put("recover", "Start to recover an interrupted transaction")
            .may_take::<Empty>()
            .gives::<StartedTransaction>(),
        CallSpec::get::<StatusDocument<'_>>("status", "Whether a change is running"),
        CallSpec::get::<Report>(
            "transactions/{id}",
            "Result of a transaction; 404 until it has ended",
        ),
        CallSpec::events::<Record>(
            "events",
            "Events, as server-sent events whose data are these objects",
        ),
    ]
}

/// The OpenAPI document.
pub(crate) fn openapi() -> Value {
    let description = Description {
        title: "p2pctl serve",
        description: "The daemon that changes IOMMU groups while virtual machines run: HTTP on a unix socket",
        errors: &ERRORS,
        calls: &calls(),
    };
    description.openapi()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::calls::CALLS;
    use super::*;

    #[test]
    fn the_document_that_is_checked_in_is_this_one() {
        let path =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../../resources/openapi-daemon.json");
        let now = format!("{:#}\n", openapi());
        if std::env::var_os("UPDATE_OPENAPI").is_some() {
            std::fs::write(&path, &now).unwrap();
        }
        let checked_in = std::fs::read_to_string(&path).unwrap();
        assert!(
            now == checked_in,
            "resources/openapi-daemon.json is not current: UPDATE_OPENAPI=1 cargo test -p p2pctl checked_in"
        );
    }

    /// The value at a JSON pointer in the document.
    fn part(pointer: &str) -> Value {
        openapi().pointer(pointer).cloned().unwrap_or_default()
    }

    #[test]
    fn what_the_document_says_of_bodies_is_so() {
        assert_eq!(part("/paths/~1recover/put/requestBody/required"), false);
        assert_eq!(part("/paths/~1reset/put/requestBody/required"), true);
        for (set, twice) in [
            (
                "Goals/properties/isolate",
                r#"{"goals":{"isolate":["03:00.0","03:00.0"]}}"#,
            ),
            (
                "PlanOptions/properties/with",
                r#"{"goals":{},"options":{"with":["03:00.0","03:00.0"]}}"#,
            ),
            (
                "Goals/properties/join/items",
                r#"{"goals":{"join":[["03:00.0","03:00.0"]]}}"#,
            ),
        ] {
            let set = part(&format!("/components/schemas/{set}/uniqueItems"));
            assert_eq!(set, true);
            let error = serde_json::from_str::<PlanRequest>(twice)
                .unwrap_err()
                .to_string();
            assert!(error.starts_with("0000:03:00.0 is named twice"), "{error}");
        }
        for text in ["AcsBits", "ResetMask", "Sbdf"] {
            assert!(
                part(&format!("/components/schemas/{text}/pattern")).is_string(),
                "{text}"
            );
        }
        let plan = part("/components/schemas/Plan/properties");
        for (name, member) in plan.as_object().unwrap() {
            let typed = ["type", "$ref", "anyOf"]
                .iter()
                .any(|key| member.get(key).is_some());
            assert!(typed, "{name}: {member}");
        }
    }

    #[test]
    fn every_call_that_is_answered_is_described() {
        let described: Vec<_> = calls().iter().map(CallSpec::route).collect();
        let (events, described) = described.split_last().unwrap();
        assert_eq!(events.0, "events");
        assert_eq!(described, CALLS);
    }
}
