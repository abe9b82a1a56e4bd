//! `p2pctl/groups/1`.

use std::collections::BTreeMap;

use iommu_group::{Difference, Function, GroupId, GroupModel, Groups, RoutingModel, Topology};
use serde_json::{Value, json};

use super::{Document, variant};

/// The document of these groups. `booted` are the groups after a fresh boot.
pub(crate) fn groups(
    topology: &Topology,
    groups: &BTreeMap<GroupId, Vec<&Function>>,
    booted: &GroupModel<'_>,
) -> Document {
    let found = Groups::found(topology);
    let group = |(group, functions): (&GroupId, &Vec<&Function>)| {
        let functions = functions.iter().map(|function| member(booted, function));
        json!({ "group": group, "functions": functions.collect::<Vec<_>>() })
    };
    let ungrouped = topology.functions().iter().filter(|f| f.group().is_none());
    let change = |Difference { sbdf, here, there }| json!({ "address": sbdf, "now": here, "at_boot": there });
    let changes = found.differences(&booted.groups()).into_iter().map(change);
    let fields = json!({
        "groups": groups.iter().map(group).collect::<Vec<_>>(),
        "without_group": ungrouped.map(Function::sbdf).collect::<Vec<_>>(),
        "different_at_boot": changes.collect::<Vec<_>>(),
        "leaks": RoutingModel::found(topology).isolation_holes(&found),
    });
    Document::new("p2pctl/groups/1", fields)
}

fn member(booted: &GroupModel<'_>, function: &Function) -> Value {
    let reason = booted.reason(function.sbdf());
    json!({
        "address": function.sbdf(),
        "driver": function.driver(),
        "boot_reason": reason.map(|reason| json!({
            "kind": variant(&reason),
            "text": reason.to_string(),
        })),
    })
}
