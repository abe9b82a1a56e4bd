//! `p2pctl groups`: the IOMMU groups and their members.

use std::collections::BTreeMap;

use anyhow::Result;
use iommu_group::{
    Difference, Firmware, Function, GroupId, GroupModel, Groups, Kernel, Reason, Sbdf, Topology,
};

use crate::answer::Answer;
use crate::cli::GroupsArgs;
use crate::describe;
use crate::isolation_holes;
use crate::json::{self, Document};
use crate::names::Names;
use crate::show::{Line, Table, Text, Tone};
use crate::source::Source;

/// The groups after a fresh boot.
struct Booted<'t> {
    model: GroupModel<'t>,
    groups: Groups,
}

impl<'t> Booted<'t> {
    fn new(topology: &'t Topology) -> Self {
        let model = GroupModel::booted(topology, &Kernel::of(topology), Firmware::Cleared);
        Self {
            groups: model.groups(),
            model,
        }
    }
}

/// The document of `groups`.
pub(crate) fn document(topology: &Topology, of: &[Sbdf]) -> Document {
    let booted = Booted::new(topology);
    json::groups(topology, &by_group(topology, of), &booted.model)
}

/// Shows the groups.
pub(crate) fn run(source: &Source, args: &GroupsArgs, json: bool, width: usize) -> Result<Answer> {
    let topology = source.topology();
    source.must_have(&args.of)?;
    if json {
        return Answer::json(&document(topology, &args.of));
    }
    if !topology.has_groups() {
        return Ok(Answer::text(Text::new()).note(format_args!(
            "no function in {} has an IOMMU group: no IOMMU is in use. Switch it on in the firmware, and boot with \
             intel_iommu=on on Intel",
            source.from
        )));
    }
    let groups = by_group(topology, &args.of);
    let booted = Booted::new(topology);
    let reasons = args.why.then_some(&booted);
    let mut text = show(&groups, source.names, reasons, width);
    let shown: Vec<Sbdf> = match args.of.as_slice() {
        [] => Vec::new(),
        _ => groups.values().flatten().map(|f| f.sbdf()).collect(),
    };
    text.extend(isolation_holes::current(
        topology,
        source.names,
        &shown,
        width,
    ));
    let answer = Answer::text(text).about(source);
    let differences = Groups::found(topology).differences(&booted.groups);
    if differences.is_empty() || topology.needs_privilege() {
        return Ok(answer);
    }
    Ok(answer.note(different(&differences, source.names)))
}

/// Note about groups that differ from those after a fresh boot.
fn different(differences: &[Difference], names: Names) -> String {
    format!(
        "the groups of {} are not those that this kernel would make at boot: they were changed since, or this kernel has other rules",
        names.list(differences.iter().map(|difference| &difference.sbdf))
    )
}

/// The functions by group, in the order of their addresses.
fn by_group<'t>(topology: &'t Topology, of: &[Sbdf]) -> BTreeMap<GroupId, Vec<&'t Function>> {
    let wanted: Vec<GroupId> = of
        .iter()
        .filter_map(|sbdf| topology.get(*sbdf)?.group())
        .collect();
    let mut groups: BTreeMap<GroupId, Vec<&Function>> = BTreeMap::new();
    for function in topology.functions() {
        if let Some(group) = function.group()
            && (of.is_empty() || wanted.contains(&group))
        {
            groups.entry(group).or_default().push(function);
        }
    }
    groups
}

fn show(
    groups: &BTreeMap<GroupId, Vec<&Function>>,
    names: Names,
    booted: Option<&Booted<'_>>,
    width: usize,
) -> Text {
    let last = if booted.is_some() { "WHY" } else { "DRIVER" };
    let mut table = Table::new(["GROUP", "FUNCTION", "", last]).right(0);
    for (group, functions) in groups {
        for (index, function) in functions.iter().enumerate() {
            let number = if index == 0 {
                Line::new().toned(Tone::Name, group)
            } else {
                Line::new()
            };
            let members: Vec<Sbdf> = functions.iter().map(|f| f.sbdf()).collect();
            table.row(vec![
                number,
                names.of(function.sbdf()).into(),
                describe::what(function).into(),
                match booted {
                    Some(booted) => why(booted, function.sbdf(), &members, names),
                    None => Line::from(function.driver().unwrap_or_default()),
                },
            ]);
        }
    }
    table.render(width)
}

/// A short reason why a function is in the group with these members.
fn why(booted: &Booted<'_>, function: Sbdf, members: &[Sbdf], names: Names) -> Line {
    let reason = match booted.model.reason(function) {
        Some(reason) if booted.groups.group_of(function) == Some(members) => reason,
        _ => return Line::new().toned(Tone::Warn, "differs at boot: changed since"),
    };
    let of = |sbdf| names.of(sbdf);
    let text = match reason {
        Reason::New if members.len() == 1 => "alone".to_owned(),
        Reason::New => "came first".to_owned(),
        Reason::NoIommu | Reason::Gone | Reason::Kept => reason.to_string(),
        Reason::RequesterId { bridge } => format!("has the requester ID of {}", of(bridge)),
        Reason::ProvidedBy { provider } => {
            format!(
                "has the requester ID of {}, which provides its bus",
                of(provider)
            )
        }
        Reason::NotIsolated {
            joins,
            culprit,
            lack,
        } if joins == culprit => {
            format!("below {}, which {lack}", of(joins))
        }
        Reason::NotIsolated {
            joins,
            culprit,
            lack,
        } => {
            format!("below {}; {} {lack}", of(joins), of(culprit))
        }
        Reason::Alias { with, .. } => format!("may have the requester ID of {}", of(with)),
        Reason::SameDevice { lack, with, .. } => {
            format!("same device as {}, and {lack}", of(with))
        }
    };
    text.into()
}
