//! The kernel argument that has the effect most similar to a plan at boot.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::PortChange;
use super::planner::Planner;
use crate::config::AcsBits;
use crate::{Firmware, Function, GroupModel, Sbdf};

/// The kernel argument that has the effect most similar to a plan, for machines that should boot in this state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct BootArgument {
    /// The argument. Entries of the present command line are kept, after the new ones.
    pub argument: String,
    /// Whether the functions to be joined are in one group at boot with the argument.
    pub joins: bool,
    /// Devices that are in the groups of the joined functions at boot but not after the plan: at boot the ports are
    /// opened permanently.
    pub wider: BTreeSet<Sbdf>,
}

impl Planner<'_> {
    /// The argument for the ports that differ in the end and those that were opened for a rescan.
    pub(super) fn boot_argument(&self, changes: &[PortChange]) -> Option<BootArgument> {
        let mut words: BTreeMap<Sbdf, AcsBits> = changes
            .iter()
            .map(|change| (change.port, change.after))
            .collect();
        words.extend(&self.opened);
        // ACS control that the kernel would set anyway needs no argument.
        let kernel = self.model.kernel();
        let usual = GroupModel::booted(self.topology, kernel, Firmware::Cleared);
        words.retain(|port, word| usual.acs_control(*port) != Some(*word));
        if words.is_empty() {
            return None;
        }
        let mut entries: Vec<String> = words
            .iter()
            .map(|(port, word)| format!("{}@{}", self.flags(*port, *word), self.path(*port)))
            .collect();
        entries.extend(kernel.parameters.config_acs.clone());
        let value = entries.join(";");
        let mut kernel = kernel.clone();
        kernel.parameters.config_acs = Some(value.clone());
        let booted = GroupModel::booted(self.topology, &kernel, Firmware::Cleared);
        let mut sets = self.goals.join.iter();
        let joins =
            sets.all(|set| super::direct_route::pairs(set).all(|(a, b)| booted.together(a, b)));
        let named = self.goals.functions();
        let wider = self
            .topology
            .functions()
            .iter()
            .filter(|function| !function.is_bridge())
            .map(Function::sbdf)
            .filter(|other| {
                let newly = |function: &Sbdf| {
                    function != other
                        && booted.together(*function, *other)
                        && !self.model.together(*function, *other)
                };
                named.iter().any(newly)
            })
            .collect();
        Some(BootArgument {
            argument: format!("pci=config_acs={value}"),
            joins,
            wider,
        })
    }

    /// Flags of `config_acs=`, bit 0 last. Bits that the port does not implement are left unchanged.
    fn flags(&self, port: Sbdf, word: AcsBits) -> String {
        let implemented = self
            .port_acs(port)
            .map_or(AcsBits::NONE, |acs| acs.capability);
        (0..7_u16)
            .rev()
            .map(|shift| {
                let bit = AcsBits::from_bits_retain(1 << shift);
                match (implemented.contains(bit), word.contains(bit)) {
                    (false, _) => 'x',
                    (true, true) => '1',
                    (true, false) => '0',
                }
            })
            .collect()
    }

    /// The path of a port from its root bus. Bus numbers below the root bus may change at the next boot.
    fn path(&self, port: Sbdf) -> String {
        let mut chain: Vec<Sbdf> = self.topology.with_ancestors(port).collect();
        let top = chain.pop().unwrap_or(port);
        let mut path = top.to_string();
        for below in chain.iter().rev() {
            path.push_str(&format!("/{:02x}.{}", below.device(), below.function()));
        }
        path
    }
}
