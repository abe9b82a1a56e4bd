//! The PCI functions of a host and their tree of buses and bridges.

mod bar;
mod function;
mod host;
mod raw_function;
mod resource;
mod scan;
mod tree;

pub use bar::Bar;
pub use function::Function;
pub(crate) use function::{forwards_ari, is_later_function};
pub use host::{Cpu, Host, Iommu};
pub use tree::RootBus;

pub(crate) use raw_function::{KernelIds, Parent, RawFunction};
pub(crate) use resource::{Resource, ResourceLines};
pub(crate) use tree::FunctionId;

use std::collections::BTreeSet;

use crate::Sbdf;
use tree::Tree;

/// A snapshot of every PCI function of a host.
///
/// [`Topology::scan`] reads it from sysfs; a fixture file also holds one. It is immutable: the effects of a change are
/// computed from it. Functions are sorted by address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topology {
    host: Host,
    functions: Vec<Function>,
    tree: Tree,
}

impl Topology {
    /// Builds a topology from facts about functions. If two facts have the same address, the first one is used.
    pub(crate) fn build(host: Host, mut raw: Vec<RawFunction>) -> Self {
        raw.sort_by_key(|raw| raw.sbdf);
        raw.dedup_by_key(|raw| raw.sbdf);
        let mut functions: Vec<Function> = raw.into_iter().map(Function::new).collect();
        let tree = Tree::build(&functions);
        for id in tree.top_down() {
            let above = tree.parent(id).and_then(|id| functions.get(id.index()));
            let ari = above.is_some_and(forwards_ari);
            let above = above.map(Function::port_type);
            if let Some(function) = functions.get_mut(id.index()) {
                function.settle(above, ari);
            }
        }
        Self {
            host,
            functions,
            tree,
        }
    }

    /// Facts about the host other than its PCI functions.
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// All functions, sorted by address.
    #[must_use]
    pub fn functions(&self) -> &[Function] {
        &self.functions
    }

    /// The function with this address.
    #[must_use]
    pub fn get(&self, sbdf: Sbdf) -> Option<&Function> {
        self.id(sbdf).and_then(|id| self.functions.get(id.index()))
    }

    /// The root buses, sorted by number.
    #[must_use]
    pub fn root_buses(&self) -> &[RootBus] {
        self.tree.root_buses()
    }

    /// The root bus above a function.
    #[must_use]
    pub fn root_bus(&self, sbdf: Sbdf) -> Option<&RootBus> {
        self.tree
            .root_buses()
            .get(self.tree.root_of(self.id(sbdf)?))
    }

    /// The bridge above a function: the port whose link or bus it is on. `None` on a root bus.
    ///
    /// For a virtual function it is the bridge above its physical function (linux 7.2 include/linux/pci.h:
    /// `pci_upstream_bridge()`).
    #[must_use]
    pub fn upstream(&self, sbdf: Sbdf) -> Option<&Function> {
        let parent = self.tree.parent(self.id(sbdf)?)?;
        self.functions.get(parent.index())
    }

    /// The bridges above a function, nearest first.
    pub fn ancestors(&self, sbdf: Sbdf) -> impl Iterator<Item = &Function> {
        let first = self.id(sbdf).and_then(|id| self.tree.parent(id));
        std::iter::successors(first, |id| self.tree.parent(*id))
            .filter_map(|id| self.functions.get(id.index()))
    }

    /// A function and the bridges above it, nearest first.
    pub fn with_ancestors(&self, sbdf: Sbdf) -> impl Iterator<Item = Sbdf> {
        std::iter::once(sbdf).chain(self.ancestors(sbdf).map(Function::sbdf))
    }

    /// The functions directly below a bridge, including virtual functions, sorted by address.
    pub fn children(&self, sbdf: Sbdf) -> impl Iterator<Item = &Function> {
        let ids = self.id(sbdf).map_or(&[][..], |id| self.tree.children(id));
        ids.iter().filter_map(|id| self.functions.get(id.index()))
    }

    /// All functions below a bridge, at any depth. Each bridge comes before the functions below it.
    pub fn descendants(&self, sbdf: Sbdf) -> impl Iterator<Item = &Function> {
        let mut pending: Vec<FunctionId> = self.id(sbdf).into_iter().collect();
        let mut first = true;
        std::iter::from_fn(move || {
            loop {
                let id = pending.pop()?;
                pending.extend(self.tree.children(id).iter().rev());
                if std::mem::take(&mut first) {
                    continue;
                }
                return self.functions.get(id.index());
            }
        })
    }

    /// A function and all functions below it, at any depth. Each bridge comes before the functions below it.
    pub fn with_descendants(&self, sbdf: Sbdf) -> impl Iterator<Item = Sbdf> {
        std::iter::once(sbdf).chain(self.descendants(sbdf).map(Function::sbdf))
    }

    /// All functions in the hierarchies of these functions: the ports on the root buses, and everything below.
    pub fn hierarchies(&self, functions: impl IntoIterator<Item = Sbdf>) -> BTreeSet<Sbdf> {
        let tops = functions.into_iter();
        let tops = tops.filter_map(|function| self.with_ancestors(function).last());
        let tops: BTreeSet<Sbdf> = tops.collect();
        let all = tops.into_iter().flat_map(|top| self.with_descendants(top));
        all.collect()
    }

    /// Whether there is a function with this address that is not a bridge.
    #[must_use]
    pub fn is_device(&self, sbdf: Sbdf) -> bool {
        self.get(sbdf).is_some_and(|function| !function.is_bridge())
    }

    /// The functions on a root bus, including virtual functions, sorted by address.
    pub fn on_root_bus(&self, root: &RootBus) -> impl Iterator<Item = &Function> {
        self.tree
            .on_root(root)
            .iter()
            .filter_map(|id| self.functions.get(id.index()))
    }

    /// The virtual functions of a physical function, sorted by address.
    pub fn virtual_functions(&self, physical: Sbdf) -> impl Iterator<Item = &Function> {
        self.functions
            .iter()
            .filter(move |f| f.physical_function() == Some(physical))
    }

    /// Whether any function has an IOMMU group, that is, whether an IOMMU is in use.
    #[must_use]
    pub fn has_groups(&self) -> bool {
        self.functions.iter().any(|f| f.group().is_some())
    }

    /// Whether the reader lacked the privilege to read something that decisions need.
    #[must_use]
    pub fn needs_privilege(&self) -> bool {
        self.functions
            .iter()
            .any(|f| f.config().hidden == Some(crate::Unreadable::Unprivileged))
    }

    pub(crate) fn id(&self, sbdf: Sbdf) -> Option<FunctionId> {
        tree::position(&self.functions, sbdf)
    }

    pub(crate) fn function(&self, id: FunctionId) -> Option<&Function> {
        self.functions.get(id.index())
    }

    pub(crate) fn tree(&self) -> &Tree {
        &self.tree
    }
}
