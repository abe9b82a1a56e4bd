//! `p2pctl/groups/1`.

use std::collections::BTreeMap;

use iommu_group::{Function, GroupId, Sbdf, Topology};
use serde::Serialize;

/// The document.
#[derive(Serialize)]
pub(crate) struct Document<'a> {
    schema: &'static str,
    groups: Vec<Group<'a>>,
    without_group: Vec<Sbdf>,
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
}

/// Makes the document.
pub(crate) fn document<'a>(
    topology: &Topology,
    groups: &BTreeMap<GroupId, Vec<&'a Function>>,
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
                    })
                    .collect(),
            })
            .collect(),
        without_group: ungrouped.map(Function::sbdf).collect(),
    }
}
