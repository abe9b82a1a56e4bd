//! Index of the functions on each bus and in each slot.

use std::collections::HashMap;

use super::node::Node;
use crate::Topology;
use crate::topology::FunctionId;

/// The buses of a topology, as in the kernel: one for every bridge and every root, and one for every further bus number
/// that virtual functions use.
#[derive(Debug, Clone)]
pub(super) struct BusIndex {
    /// Bus of each function.
    pub(super) of: Vec<u32>,
    /// Functions of each bus, in ascending order.
    members: Vec<Vec<FunctionId>>,
    /// Functions of each bus that also use requester IDs other than their own.
    alias_holders: HashMap<u32, Vec<FunctionId>>,
}

impl BusIndex {
    pub(super) fn number(topology: &Topology) -> Self {
        let tree = topology.tree();
        let mut numbers: HashMap<(Option<FunctionId>, usize, Option<u8>), u32> = HashMap::new();
        let mut of = Vec::with_capacity(topology.functions().len());
        let mut members: Vec<Vec<FunctionId>> = Vec::new();
        for (index, function) in topology.functions().iter().enumerate() {
            let id = FunctionId::new(index);
            let virtual_bus = function.on_virtual_bus().then(|| function.sbdf().bus());
            let key = (tree.parent(id), tree.root_of(id), virtual_bus);
            let next = u32::try_from(members.len()).unwrap_or(u32::MAX);
            let bus = *numbers.entry(key).or_insert(next);
            of.push(bus);
            match usize::try_from(bus)
                .ok()
                .and_then(|bus| members.get_mut(bus))
            {
                Some(list) => list.push(id),
                None => members.push(vec![id]),
            }
        }
        Self {
            of,
            members,
            alias_holders: HashMap::new(),
        }
    }

    pub(super) fn note_aliases(&mut self, nodes: &[Node]) {
        for (index, node) in nodes.iter().enumerate() {
            if node.aliases.is_some() || node.aliases_unknown {
                let holders = self.alias_holders.entry(node.bus).or_default();
                holders.push(FunctionId::new(index));
            }
        }
    }

    pub(super) fn members(&self, bus: u32) -> &[FunctionId] {
        usize::try_from(bus)
            .ok()
            .and_then(|bus| self.members.get(bus))
            .map_or(&[], Vec::as_slice)
    }

    pub(super) fn alias_holders(&self, bus: u32) -> &[FunctionId] {
        if self.alias_holders.is_empty() {
            return &[];
        }
        self.alias_holders.get(&bus).map_or(&[], Vec::as_slice)
    }

    /// The functions with the same device number as `devfn`. Linux identifies devices by this number, also with ARI.
    pub(super) fn slot<'a>(
        &'a self,
        nodes: &'a [Node],
        bus: u32,
        devfn: u8,
    ) -> impl Iterator<Item = FunctionId> + use<'a> {
        let members = self.members(bus);
        let device = devfn >> 3;
        let device_of =
            move |id: &FunctionId| nodes.get(id.index()).map_or(0, |node| node.devfn >> 3);
        let start = members.partition_point(|id| device_of(id) < device);
        members
            .iter()
            .skip(start)
            .take_while(move |id| device_of(id) == device)
            .copied()
    }
}
