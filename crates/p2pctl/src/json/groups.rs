//! `p2pctl/groups/1`.

use std::collections::BTreeMap;

use iommu_group::{Difference, Function, GroupId, GroupModel, Partition, Reason, Sbdf, Topology};
use serde::Serialize;

/// The document.
#[derive(Serialize)]
pub(crate) struct Document<'a> {
    schema: &'static str,
    groups: Vec<Group<'a>>,
    without_group: Vec<Sbdf>,
    /// Functions that a fresh boot would put with others than they are with now.
    different_at_boot: Vec<Difference>,
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
    /// Why a fresh boot puts it where it does, and the same in words.
    boot_reason: Option<Reason>,
    boot_reason_text: String,
}

/// Makes the document.
pub(crate) fn document<'a>(
    topology: &Topology,
    groups: &BTreeMap<GroupId, Vec<&'a Function>>,
    booted: &GroupModel<'_>,
) -> Document<'a> {
    let ungrouped = topology.functions().iter().filter(|f| f.group().is_none());
    Document {
        schema: "p2pctl/groups/1",
        groups: groups
            .iter()
            .map(|(group, functions)| Group {
                group: *group,
                functions: functions
                    .iter()
                    .map(|function| Member {
                        address: function.sbdf(),
                        driver: function.driver(),
                        boot_reason: booted.reason(function.sbdf()),
                        boot_reason_text: booted
                            .reason(function.sbdf())
                            .map(|reason| reason.to_string())
                            .unwrap_or_default(),
                    })
                    .collect(),
            })
            .collect(),
        without_group: ungrouped.map(Function::sbdf).collect(),
        different_at_boot: Partition::found(topology).differences(&booted.partition()),
    }
}
