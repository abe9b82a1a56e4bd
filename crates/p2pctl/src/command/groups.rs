//! `p2pctl groups`: who shares an IOMMU group with whom.

use std::collections::BTreeMap;

use anyhow::Result;
use iommu_group::{Function, GroupId, Topology};

use crate::answer::Answer;
use crate::describe;
use crate::json;
use crate::names::Names;
use crate::show::{Line, Table, Text, Tone};
use crate::source::Source;

/// Shows the groups.
pub(crate) fn run(source: &Source, json: bool, width: usize) -> Result<Answer> {
    let topology = &source.topology;
    if json {
        return Answer::json(&json::groups::document(topology, &by_group(topology)));
    }
    if !topology.has_groups() {
        return Ok(Answer::text(Text::new()).note(format_args!(
            "no function in {} has an IOMMU group: no IOMMU is in use. Switch it on in the firmware, and boot with \
             intel_iommu=on on Intel",
            source.from
        )));
    }
    Ok(Answer::text(show(topology, source.names, width)).about(source))
}

/// The functions of each group in the order of their addresses.
fn by_group(topology: &Topology) -> BTreeMap<GroupId, Vec<&Function>> {
    let mut groups: BTreeMap<GroupId, Vec<&Function>> = BTreeMap::new();
    for function in topology.functions() {
        if let Some(group) = function.group() {
            groups.entry(group).or_default().push(function);
        }
    }
    groups
}

fn show(topology: &Topology, names: Names, width: usize) -> Text {
    let mut table = Table::new(["GROUP", "FUNCTION", "", "DRIVER"]).right(0);
    for (group, functions) in by_group(topology) {
        for (index, function) in functions.iter().enumerate() {
            let number = if index == 0 {
                Line::new().toned(Tone::Name, group)
            } else {
                Line::new()
            };
            table.row(vec![
                number,
                names.of(function.sbdf()).into(),
                describe::what(function).into(),
                Line::from(function.driver().unwrap_or_default()),
            ]);
        }
    }
    table.render(width)
}
