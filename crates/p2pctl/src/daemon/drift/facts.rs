//! What the peers of virtual machines depend on, and what is different in it.

use std::collections::BTreeMap;

use iommu_group::{AcsBits, Function, GroupId, Sbdf, Topology};

/// What the peers of virtual machines depend on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Facts {
    /// The ACS of every port that has any.
    pub(super) words: BTreeMap<Sbdf, AcsBits>,
    /// The group of every endpoint.
    pub(super) groups: BTreeMap<Sbdf, Option<GroupId>>,
}

impl Facts {
    pub(super) fn of(topology: &Topology) -> Self {
        let all = topology.functions().iter();
        let word = |function: &Function| {
            let port = function.port_type().is_downstream();
            let acs = function.acs().registers().filter(|_| port)?;
            Some((function.sbdf(), acs.control))
        };
        Self {
            words: all.clone().filter_map(word).collect(),
            groups: all
                .filter(|function| !function.is_bridge())
                .map(|function| (function.sbdf(), function.group()))
                .collect(),
        }
    }

    /// What is different now, in words, and where.
    pub(super) fn changes(&self, now: &Self) -> Vec<(Sbdf, String)> {
        let mut changes = Vec::new();
        for (port, was) in &self.words {
            match now.words.get(port) {
                Some(is) if is == was => {}
                Some(is) => changes.push((
                    *port,
                    format!(
                        "ACS of {port} is {:04x}, and was {:04x}",
                        is.bits(),
                        was.bits()
                    ),
                )),
                None => changes.push((*port, format!("{port} is gone"))),
            }
        }
        for (function, was) in &self.groups {
            match now.groups.get(function) {
                Some(is) if is == was => {}
                Some(_) => changes.push((*function, format!("{function} is in another group"))),
                None => changes.push((*function, format!("{function} is gone"))),
            }
        }
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SWITCH: &str = include_str!("../../../../../resources/topologies/switch-four-nvme.json");

    #[test]
    fn a_host_is_like_itself() {
        let facts = Facts::of(&Topology::from_fixture(SWITCH).unwrap());
        assert!(!facts.words.is_empty() && !facts.groups.is_empty());
        assert_eq!(facts.changes(&facts), []);
    }

    #[test]
    fn another_word_a_lost_device_and_another_group_are_told() {
        let facts = Facts::of(&Topology::from_fixture(SWITCH).unwrap());
        let (port, word) = facts.words.iter().next().unwrap();
        let mut functions = facts.groups.keys();
        let (lost, moved) = (functions.next().unwrap(), functions.next().unwrap());
        let mut now = facts.clone();
        now.words.insert(*port, AcsBits::from_bits(0));
        now.groups.remove(lost);
        now.groups.insert(*moved, None);
        let told = facts.changes(&now);
        let expected = [
            (
                *port,
                format!("ACS of {port} is 0000, and was {:04x}", word.bits()),
            ),
            (*lost, format!("{lost} is gone")),
            (*moved, format!("{moved} is in another group")),
        ];
        assert_eq!(told, expected);
    }
}
