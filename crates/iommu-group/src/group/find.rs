//! Search for the group of a function that is being added, in the same steps as Linux.

use std::collections::BTreeMap;

use super::bus_index::BusIndex;
use super::isolation::lack;
use super::node::{LocalGroup, Node, Passes};
use super::reason::{AcsDeficiency, Reason, Uncertainty};
use crate::config::{PortType, Unreadable};
use crate::kernel::Kernel;
use crate::topology::FunctionId;
use crate::{Sbdf, Topology};

/// Searches for the group of a function that is being added (linux 7.2 drivers/iommu/iommu.c: `pci_device_group()`, the
/// same in 6.12 and 7.3).
pub(super) struct GroupFinder<'a> {
    pub(super) topology: &'a Topology,
    pub(super) kernel: &'a Kernel,
    pub(super) nodes: &'a [Node],
    pub(super) buses: &'a BusIndex,
    /// Unknown facts that the result depends on.
    pub(super) doubts: &'a mut BTreeMap<Sbdf, Uncertainty>,
}

/// The functions of one bus that were visited. It makes the search for aliases of aliases finite.
#[derive(Default)]
struct Visited([u64; 4]);

impl Visited {
    /// Marks a function as visited. Returns whether this is the first visit.
    fn enter(&mut self, devfn: u8) -> bool {
        let Some(word) = self.0.get_mut(usize::from(devfn / 64)) else {
            return false;
        };
        let bit = 1 << (devfn % 64);
        let first = *word & bit == 0;
        *word |= bit;
        first
    }
}

impl<'a> GroupFinder<'a> {
    /// The group that a function joins, or `None` for a new group, with the reason.
    pub(super) fn find(&mut self, id: FunctionId) -> (Option<LocalGroup>, Reason) {
        // The function whose requester ID the IOMMU sees: the function itself, a bridge, or the provider of its root
        // bus.
        let mut last = id;
        if let Some((provider, node)) = self.provider(id) {
            last = provider;
            if let Some(group) = node.group {
                return (
                    Some(group),
                    Reason::ProvidedBy {
                        provider: node.sbdf,
                    },
                );
            }
        }
        for (bridge, node) in self.bridges_above(last) {
            match node.passes {
                Passes::ToIommu => break,
                Passes::Unchanged => self.doubt_type(node),
                Passes::OneIdForAll => {
                    last = bridge;
                    if let Some(group) = node.group {
                        return (Some(group), Reason::RequesterId { bridge: node.sbdf });
                    }
                }
            }
        }
        // Walk up until every function from there to the root isolates.
        for (bridge, node) in self.bridges_above(last) {
            let Some((culprit, lack)) = self.lack_up_from(bridge) else {
                break;
            };
            last = bridge;
            if let Some(group) = node.group {
                let joins = node.sbdf;
                return (
                    Some(group),
                    Reason::NotIsolated {
                        joins,
                        culprit,
                        lack,
                    },
                );
            }
        }
        let mut visited = Visited::default();
        if let Some((group, with)) = self.alias_group(last, &mut visited) {
            let of = self.sbdf(last);
            let with = self.sbdf(with);
            return (Some(group), Reason::Alias { of, with });
        }
        if let Some((group, reason)) = self.device_group(last, &mut visited) {
            return (Some(group), reason);
        }
        (None, Reason::New)
    }

    fn node(&self, id: FunctionId) -> Option<&'a Node> {
        self.nodes.get(id.index())
    }

    fn sbdf(&self, id: FunctionId) -> Sbdf {
        self.node(id)
            .map_or(Sbdf::from_devfn(0, 0, 0), |node| node.sbdf)
    }

    /// The bridges above a function, nearest first.
    fn bridges_above(
        &self,
        id: FunctionId,
    ) -> impl Iterator<Item = (FunctionId, &'a Node)> + use<'a> {
        let nodes = self.nodes;
        let above = self.topology.tree().ancestors(id);
        above.filter_map(|id| Some((id, nodes.get(id.index())?)))
    }

    /// The provider of the root bus of a function (linux 7.2 arch/x86/pci/common.c: `pci_real_dma_dev()`).
    fn provider(&self, id: FunctionId) -> Option<(FunctionId, &'a Node)> {
        let root = self.topology.tree().root_of(id);
        let behind = self.topology.root_buses().get(root)?.behind?;
        let provider = self.topology.id(behind)?;
        Some((provider, self.node(provider)?))
    }

    /// The lowest function on the path from a bridge to the root that does not isolate (linux 7.2 drivers/pci/pci.c:
    /// `pci_acs_path_enabled()`).
    fn lack_up_from(&mut self, bridge: FunctionId) -> Option<(Sbdf, AcsDeficiency)> {
        let own = self.node(bridge).map(|node| (bridge, node));
        let nodes = own.into_iter().chain(self.bridges_above(bridge));
        for (_, node) in nodes {
            if let Some(lack) = self.lack(node) {
                return Some((node.sbdf, lack));
            }
        }
        None
    }

    fn lack(&mut self, node: &Node) -> Option<AcsDeficiency> {
        let found = lack(node, self.kernel);
        if let Some(AcsDeficiency::Unreadable(hidden)) = found {
            self.doubts
                .insert(node.sbdf, Uncertainty::Unreadable(hidden));
        }
        found
    }

    /// Records an uncertainty for a bridge that cannot be read: it may change requester IDs.
    fn doubt_type(&mut self, node: &Node) {
        if node.port_type == PortType::Unknown {
            let hidden = node.hidden.unwrap_or(Unreadable::Unreachable);
            self.doubts
                .insert(node.sbdf, Uncertainty::Unreadable(hidden));
        }
    }

    /// The group of a function, or of a function that shares requester IDs with it (linux: `get_pci_alias_group()`).
    fn alias_group(
        &mut self,
        id: FunctionId,
        visited: &mut Visited,
    ) -> Option<(LocalGroup, FunctionId)> {
        let node = self.node(id)?;
        if !visited.enter(node.devfn) {
            return None;
        }
        if let Some(group) = node.group {
            return Some((group, id));
        }
        for other in self.aliased_with(id, node) {
            if let Some(found) = self.alias_group(other, visited) {
                return Some(found);
            }
            if let Some((group, _)) = self.device_group(other, visited) {
                return Some((group, other));
            }
        }
        None
    }

    /// The functions of the same bus that share requester IDs with this one, in the order of the kernel's list (linux:
    /// `pci_devs_are_dma_aliases()`). The provider of a root bus is never on that bus.
    fn aliased_with(&mut self, id: FunctionId, node: &Node) -> Vec<FunctionId> {
        let holders = self.buses.alias_holders(node.bus);
        if holders.is_empty() {
            return Vec::new();
        }
        for holder in holders
            .iter()
            .filter_map(|holder| self.nodes.get(holder.index()))
        {
            if holder.aliases_unknown {
                self.doubts
                    .insert(holder.sbdf, Uncertainty::AliasesInDeviceMemory);
            }
        }
        let aliases = |of: &Node, devfn| {
            of.aliases
                .as_ref()
                .is_some_and(|aliases| aliases.contains(devfn))
        };
        let candidates: &[FunctionId] = match node.aliases {
            Some(_) => self.buses.members(node.bus),
            None => holders,
        };
        let mut found: Vec<(u32, FunctionId)> = candidates
            .iter()
            .filter(|other| **other != id)
            .filter_map(|other| Some((*other, self.node(*other)?)))
            .filter(|(_, other)| {
                other.present && (aliases(node, other.devfn) || aliases(other, node.devfn))
            })
            .map(|(id, other)| (other.added, id))
            .collect();
        found.sort_unstable();
        found.into_iter().map(|(_, id)| id).collect()
    }

    /// The group of another function of the same device, if neither function isolates (linux:
    /// `get_pci_function_alias_group()`).
    fn device_group(
        &mut self,
        id: FunctionId,
        visited: &mut Visited,
    ) -> Option<(LocalGroup, Reason)> {
        let node = self.node(id)?;
        if !node.multifunction {
            return None;
        }
        let lack = self.lack(node)?;
        let mut others: Vec<(u32, FunctionId)> = self
            .buses
            .slot(self.nodes, node.bus, node.devfn)
            .filter(|other| *other != id)
            .filter_map(|other| Some((self.node(other)?.added, other)))
            .collect();
        others.sort_unstable();
        for (_, other) in others {
            let Some(other_node) = self.node(other).filter(|other| other.present) else {
                continue;
            };
            let Some(with_lack) = self.lack(other_node) else {
                continue;
            };
            if let Some((group, _)) = self.alias_group(other, visited) {
                let reason = Reason::SameDevice {
                    of: node.sbdf,
                    lack,
                    with: other_node.sbdf,
                    with_lack,
                };
                return Some((group, reason));
            }
        }
        None
    }
}
