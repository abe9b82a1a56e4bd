//! `p2pctl/groups/1`.

use std::collections::BTreeMap;

use iommu_group::{
    Difference, Function, GroupId, GroupModel, Groups, Reason, RoutingModel, Sbdf, Topology,
};
use serde::Serialize;

use super::leak::LeakEntry;

/// The document.
#[derive(Serialize)]
pub(crate) struct Document<'a> {
    schema: &'static str,
    groups: Vec<Group<'a>>,
    without_group: Vec<Sbdf>,
    different_at_boot: Vec<Change>,
    leaks: Vec<LeakEntry>,
}

#[derive(Serialize)]
struct Group<'a> {
    group: GroupId,
    functions: Vec<Member<'a>>,
}

#[derive(Serialize)]
struct Member<'a> {
    address: Sbdf,
    driver: Option<&'a str>,
    boot_reason: Option<BootReason>,
}

#[derive(Serialize)]
struct BootReason {
    kind: &'static str,
    text: String,
}

#[derive(Serialize)]
struct Change {
    address: Sbdf,
    now: Vec<Sbdf>,
    at_boot: Vec<Sbdf>,
}

/// Builds the document.
pub(crate) fn document<'a>(
    topology: &Topology,
    groups: &BTreeMap<GroupId, Vec<&'a Function>>,
    booted: &GroupModel<'_>,
) -> Document<'a> {
    let found = Groups::found(topology);
    let ungrouped = topology.functions().iter().filter(|f| f.group().is_none());
    let leaks = RoutingModel::found(topology).isolation_holes(&found);
    let differences = found.differences(&booted.groups());
    Document {
        schema: "p2pctl/groups/1",
        groups: groups
            .iter()
            .map(|(group, functions)| Group {
                group: *group,
                functions: functions.iter().map(|f| member(booted, f)).collect(),
            })
            .collect(),
        without_group: ungrouped.map(Function::sbdf).collect(),
        different_at_boot: differences.into_iter().map(change).collect(),
        leaks: leaks.iter().map(LeakEntry::of).collect(),
    }
}

fn member<'a>(booted: &GroupModel<'_>, function: &'a Function) -> Member<'a> {
    Member {
        address: function.sbdf(),
        driver: function.driver(),
        boot_reason: booted.reason(function.sbdf()).map(|reason| BootReason {
            kind: match reason {
                Reason::NoIommu => "no-iommu",
                Reason::Gone => "gone",
                Reason::Kept => "kept",
                Reason::New => "new",
                Reason::RequesterId { .. } => "requester-id",
                Reason::ProvidedBy { .. } => "provided-by",
                Reason::NotIsolated { .. } => "not-isolated",
                Reason::Alias { .. } => "alias",
                Reason::SameDevice { .. } => "same-device",
            },
            text: reason.to_string(),
        }),
    }
}

fn change(difference: Difference) -> Change {
    Change {
        address: difference.sbdf,
        now: difference.here,
        at_boot: difference.there,
    }
}
