//! The documents of `--json` and their description.

use std::collections::BTreeSet;

use serde_json::Value;
use test_machine::hosts;

use crate::run::{OnDisk, on};

const DESCRIPTION: &str = include_str!("../../JSON.md");

/// The names of all fields, at any depth.
fn fields(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                found.insert(name.clone());
                fields(value, found);
            }
        }
        Value::Array(values) => values.iter().for_each(|value| fields(value, found)),
        _ => {}
    }
}

#[test]
fn every_field_is_described() {
    let many = OnDisk::new(&hosts::sriov_1000()).run(&["topology", "--json"]);
    let runs = [
        ("switch-joined", &["topology"][..]),
        ("unprivileged", &["topology"]),
        ("switch-joined", &["groups"]),
        ("switch-joined", &["matrix"]),
        ("gpu-server-two-sockets", &["matrix"]),
        ("switch-joined", &["explain", "03:00.0", "04:00.0"]),
        ("client-amd", &["reset-scope", "07:00.0"]),
        (
            "switch-four-nvme",
            &["plan", "--join", "03:00.0", "04:00.0"],
        ),
        ("switch-four-nvme", &["kernel-args", "--acs", "02:00.0=11"]),
    ];
    let runs = runs.map(|(machine, args)| on(machine, &[args, &["--json"]].concat()));
    for run in runs.into_iter().chain([many]) {
        let mut document = run.json();
        // The plan itself is a format of its own.
        if document["plan"].is_object() {
            document["plan"] = Value::Null;
        }
        let schema = document["schema"].as_str().unwrap();
        assert!(DESCRIPTION.contains(&format!("`{schema}`")), "{schema}");
        let mut found = BTreeSet::new();
        fields(&document, &mut found);
        for field in found {
            assert!(
                DESCRIPTION.contains(&format!("`{field}`")),
                "`{field}` of {schema}"
            );
        }
    }
}

#[test]
fn a_pair_in_json() {
    let document = on(
        "switch-without-acs",
        &["explain", "03:00.0", "04:00.0", "--json"],
    );
    assert_eq!(document.status, 2);
    let pair = &document.json()["pairs"][0];
    assert_eq!(pair["allowed"], false);
    assert_eq!(pair["reasons"][0]["kind"], "different-groups");
    assert_eq!(pair["route"], "switch-local");
    assert_eq!(pair["reach_without_iommu"], "yes");
    assert_eq!(pair["p2pdma"]["mapping"], "bus-address");
    let document = on(
        "switch-joined",
        &["explain", "03:00.0", "04:00.0", "--json"],
    );
    assert_eq!(document.status, 0);
    let pair = &document.json()["pairs"][0];
    assert_eq!(
        (&pair["allowed"], &pair["placement"]),
        (&true.into(), &"at-bus-address".into())
    );
}
