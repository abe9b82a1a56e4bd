//! The tree of PCI functions and root buses.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::{Function, Parent};
use crate::Sbdf;

/// Index of a function in its topology.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct FunctionId(u32);

impl FunctionId {
    pub(crate) fn new(index: usize) -> Self {
        Self(u32::try_from(index).unwrap_or(u32::MAX))
    }

    pub(crate) fn index(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

/// A root bus: `pci0000:00` in the kernel's naming.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct RootBus {
    /// Segment number.
    pub domain: u32,
    /// Bus number.
    pub bus: u8,
    /// The PCI function that provides this bus, such as an Intel VMD endpoint. All requests from devices below use its
    /// requester ID.
    pub behind: Option<Sbdf>,
}

impl std::fmt::Display for RootBus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "pci{:04x}:{:02x}", self.domain, self.bus)
    }
}

/// Parents and children of all functions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tree {
    parents: Vec<Option<FunctionId>>,
    /// Index of the root bus of each function.
    roots: Vec<usize>,
    root_buses: Vec<RootBus>,
    /// Ranges of `members`: the functions below each function, then the functions on each root bus.
    starts: Vec<usize>,
    members: Vec<FunctionId>,
    /// All functions; every bridge comes before the functions below it.
    top_down: Vec<FunctionId>,
}

impl Tree {
    pub(super) fn build(functions: &[Function]) -> Self {
        let mut parents = direct_parents(functions);
        let top_down = break_cycles(&mut parents);

        let mut root_buses: Vec<RootBus> = Vec::new();
        for (function, parent) in functions.iter().zip(&parents) {
            if parent.is_none() {
                root_buses.push(own_root(function));
            }
        }
        root_buses.sort_unstable();
        // If a bus is listed twice, the entry with a providing function sorts last. Reversing keeps that entry.
        root_buses.reverse();
        root_buses.dedup_by_key(|root| (root.domain, root.bus));
        root_buses.reverse();

        let mut roots = vec![0; functions.len()];
        for id in &top_down {
            let root = match parents.get(id.index()).copied().flatten() {
                Some(parent) => roots.get(parent.index()).copied().unwrap_or(0),
                None => functions.get(id.index()).map_or(0, |function| {
                    let own = own_root(function);
                    root_buses
                        .binary_search_by_key(&(own.domain, own.bus), |r| (r.domain, r.bus))
                        .unwrap_or(0)
                }),
            };
            if let Some(slot) = roots.get_mut(id.index()) {
                *slot = root;
            }
        }

        let (starts, members) = group_by(
            functions.len() + root_buses.len(),
            functions.len(),
            |index| match parents.get(index).copied().flatten() {
                Some(parent) => parent.index(),
                None => functions.len() + roots.get(index).copied().unwrap_or(0),
            },
        );
        Self {
            parents,
            roots,
            root_buses,
            starts,
            members,
            top_down,
        }
    }

    pub(crate) fn parent(&self, id: FunctionId) -> Option<FunctionId> {
        self.parents.get(id.index()).copied().flatten()
    }

    /// The bridges above a function, nearest first.
    pub(crate) fn ancestors(&self, id: FunctionId) -> impl Iterator<Item = FunctionId> {
        std::iter::successors(self.parent(id), |id| self.parent(*id))
    }

    pub(crate) fn root_buses(&self) -> &[RootBus] {
        &self.root_buses
    }

    /// The index of the function's root bus among the root buses.
    pub(crate) fn root_of(&self, id: FunctionId) -> usize {
        self.roots.get(id.index()).copied().unwrap_or(0)
    }

    pub(crate) fn children(&self, id: FunctionId) -> &[FunctionId] {
        self.range(id.index())
    }

    pub(super) fn on_root(&self, root: &RootBus) -> &[FunctionId] {
        match self.root_buses.binary_search(root) {
            Ok(index) => self.range(self.parents.len() + index),
            Err(_) => &[],
        }
    }

    /// The functions on the root bus with this index.
    pub(crate) fn on_root_number(&self, index: usize) -> &[FunctionId] {
        self.range(self.parents.len().saturating_add(index))
    }

    /// All functions; every bridge comes before the functions below it.
    pub(crate) fn top_down(&self) -> impl Iterator<Item = FunctionId> {
        self.top_down.iter().copied()
    }

    fn range(&self, slot: usize) -> &[FunctionId] {
        let start = self.starts.get(slot).copied().unwrap_or(0);
        let end = self
            .starts
            .get(slot.saturating_add(1))
            .copied()
            .unwrap_or(start);
        self.members.get(start..end).unwrap_or_default()
    }
}

fn own_root(function: &Function) -> RootBus {
    match function.parent() {
        Parent::Root {
            domain,
            bus,
            behind,
        } => RootBus {
            domain,
            bus,
            behind,
        },
        // Sysfs has no bridge above: the function's own bus is treated as a root bus.
        Parent::Bridge(_) | Parent::ByBusNumber => {
            let address = function
                .physical_function()
                .unwrap_or_else(|| function.sbdf());
            RootBus {
                domain: address.domain(),
                bus: address.bus(),
                behind: None,
            }
        }
    }
}

fn direct_parents(functions: &[Function]) -> Vec<Option<FunctionId>> {
    let bridges: HashMap<(u32, u8), FunctionId> = functions
        .iter()
        .enumerate()
        .rev()
        .filter_map(|(index, f)| {
            Some((
                (f.sbdf().domain(), f.secondary_bus()?),
                FunctionId::new(index),
            ))
        })
        .collect();
    let by_bus_number = |f: &Function| {
        let address = f.physical_function().unwrap_or_else(|| f.sbdf());
        bridges.get(&(address.domain(), address.bus())).copied()
    };
    functions
        .iter()
        .map(|function| match function.parent() {
            Parent::Root { .. } => None,
            Parent::Bridge(bridge) => position(functions, bridge),
            Parent::ByBusNumber => by_bus_number(function),
        })
        .collect()
}

/// The ID of the function with this address among `functions`, which are sorted by address.
pub(super) fn position(functions: &[Function], sbdf: Sbdf) -> Option<FunctionId> {
    let index = functions.binary_search_by_key(&sbdf, Function::sbdf);
    index.ok().map(FunctionId::new)
}

/// Cuts every cycle of parents. Cycles occur only with invalid bus numbers or in an invalid file. Returns all
/// functions, each parent before its children.
fn break_cycles(parents: &mut [Option<FunctionId>]) -> Vec<FunctionId> {
    #[derive(Clone, Copy, PartialEq)]
    enum Seen {
        Not,
        OnThisWay,
        Done,
    }
    let mut seen = vec![Seen::Not; parents.len()];
    let mut order = Vec::with_capacity(parents.len());
    let mut way = Vec::new();
    for index in 0..parents.len() {
        let mut at = Some(FunctionId::new(index));
        while let Some(id) = at {
            match seen.get(id.index()).copied().unwrap_or(Seen::Done) {
                Seen::Done => break,
                Seen::OnThisWay => {
                    // The last function of the walk has an ancestor below itself.
                    if let Some(last) = way
                        .last()
                        .copied()
                        .and_then(|id: FunctionId| parents.get_mut(id.index()))
                    {
                        *last = None;
                    }
                    break;
                }
                Seen::Not => {}
            }
            if let Some(mark) = seen.get_mut(id.index()) {
                *mark = Seen::OnThisWay;
            }
            way.push(id);
            at = parents.get(id.index()).copied().flatten();
        }
        while let Some(id) = way.pop() {
            if let Some(mark) = seen.get_mut(id.index()) {
                *mark = Seen::Done;
            }
            order.push(id);
        }
    }
    order
}

/// Sorts `count` items into `slots` by `slot_of` and keeps their order. Returns the start of each slot, and the items.
fn group_by(
    slots: usize,
    count: usize,
    slot_of: impl Fn(usize) -> usize,
) -> (Vec<usize>, Vec<FunctionId>) {
    let mut starts = vec![0_usize; slots.saturating_add(1)];
    for index in 0..count {
        if let Some(counter) = starts.get_mut(slot_of(index).saturating_add(1)) {
            *counter = counter.saturating_add(1);
        }
    }
    let mut sum = 0_usize;
    for start in &mut starts {
        sum = sum.saturating_add(*start);
        *start = sum;
    }
    let mut next = starts.clone();
    let mut members = vec![FunctionId::new(0); count];
    for index in 0..count {
        if let Some(place) = next.get_mut(slot_of(index)) {
            if let Some(member) = members.get_mut(*place) {
                *member = FunctionId::new(index);
            }
            *place = place.saturating_add(1);
        }
    }
    (starts, members)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(list: &[usize]) -> Vec<FunctionId> {
        list.iter().copied().map(FunctionId::new).collect()
    }

    #[test]
    fn parents_come_before_their_children() {
        let some = |index| Some(FunctionId::new(index));
        let mut parents = [some(2), None, some(1), some(0)];
        assert_eq!(break_cycles(&mut parents), ids(&[1, 2, 0, 3]));
    }

    #[test]
    fn cycles_are_cut() {
        let some = |index| Some(FunctionId::new(index));
        let mut parents = [some(1), some(2), some(0), some(3), some(1)];
        let order = break_cycles(&mut parents);
        assert_eq!(order.len(), 5);
        assert_eq!(parents, [some(1), some(2), None, None, some(1)]);
    }

    #[test]
    fn grouping_keeps_the_order() {
        let slots = [1, 0, 1, 2, 0];
        let (starts, members) = group_by(4, 5, |index| slots[index]);
        assert_eq!(starts, [0, 2, 4, 5, 5]);
        assert_eq!(members, ids(&[1, 4, 0, 2, 3]));
    }
}
