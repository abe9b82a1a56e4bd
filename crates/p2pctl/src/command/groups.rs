//! `p2pctl groups`: who shares an IOMMU group with whom.

use anyhow::Result;
use iommu_group::{GroupId, GroupMember, Sysfs};
use serde::Serialize;

use crate::answer::Answer;
use crate::names::Names;
use crate::show::{Line, Table, Terminal, Text, Tone};

/// The document that `--json` prints.
#[derive(Serialize)]
struct Document<'a> {
    schema: &'static str,
    groups: Vec<Group<'a>>,
}

#[derive(Serialize)]
struct Group<'a> {
    group: GroupId,
    members: Vec<Member<'a>>,
}

#[derive(Serialize)]
struct Member<'a> {
    name: &'a str,
    driver: Option<&'a str>,
}

/// Reads the groups and shows them.
pub(crate) fn run(sysfs: &Sysfs, json: bool, terminal: &Terminal) -> Result<Answer> {
    let mut groups = Vec::new();
    for group in sysfs.groups()? {
        groups.push((group, sysfs.group_members(group)?));
    }
    if json {
        return Answer::json(&document(&groups));
    }
    if groups.is_empty() {
        return Ok(Answer::text(Text::new()).note(format_args!(
            "no IOMMU groups in {}: no IOMMU is in use. Switch it on in the firmware, and boot with \
             intel_iommu=on on Intel",
            sysfs.root().display()
        )));
    }
    Ok(Answer::text(show(&groups, terminal.width)))
}

fn document(groups: &[(GroupId, Vec<GroupMember>)]) -> Document<'_> {
    Document {
        schema: "p2pctl/groups/1",
        groups: groups
            .iter()
            .map(|(group, members)| Group {
                group: *group,
                members: members
                    .iter()
                    .map(|m| Member {
                        name: &m.name,
                        driver: m.driver.as_deref(),
                    })
                    .collect(),
            })
            .collect(),
    }
}

fn show(groups: &[(GroupId, Vec<GroupMember>)], width: usize) -> Text {
    let members = groups.iter().flat_map(|(_, members)| members);
    let names = Names::new(members.filter_map(|m| m.sbdf));
    let mut table = Table::new(["GROUP", "FUNCTION", "DRIVER"]).right(0);
    for (group, members) in groups {
        for (index, member) in members.iter().enumerate() {
            let number = if index == 0 {
                Line::new().toned(Tone::Name, group)
            } else {
                Line::new()
            };
            table.row(vec![
                number,
                member
                    .sbdf
                    .map_or_else(|| member.name.clone(), |f| names.of(f))
                    .into(),
                Line::from(member.driver.as_deref().unwrap_or_default()),
            ]);
        }
    }
    table.render(width)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str, driver: Option<&str>) -> GroupMember {
        GroupMember {
            sbdf: name.parse().ok(),
            name: name.to_owned(),
            driver: driver.map(str::to_owned),
        }
    }

    #[test]
    fn a_group_is_named_once() {
        let groups = [
            (GroupId(2), vec![member("0000:00:04.0", Some("pcieport"))]),
            (
                GroupId(16),
                vec![
                    member("0000:01:00.0", Some("vfio-pci")),
                    member("0000:01:00.1", None),
                    member("arm-smmu", None),
                ],
            ),
        ];
        assert_eq!(
            show(&groups, 80).render(false),
            "\
GROUP  FUNCTION  DRIVER
    2  00:04.0   pcieport
   16  01:00.0   vfio-pci
       01:00.1
       arm-smmu
"
        );
    }
}
