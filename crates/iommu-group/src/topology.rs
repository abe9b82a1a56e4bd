//! The PCI functions of a host and how they hang together.

mod function;
mod host;
mod raw_function;
mod resource;
mod scan;
mod tree;

pub use function::Function;
pub(crate) use function::{forwards_ari, is_later_function};
pub use host::{Cpu, Host, Iommu};
pub use resource::Bar;
pub use tree::RootBus;

pub(crate) use raw_function::{KernelIds, Parent, RawFunction};
pub(crate) use resource::{Resource, ResourceLines};
pub(crate) use tree::FunctionId;

use crate::Sbdf;
use tree::Tree;

/// Every PCI function of a host, at one moment.
///
/// It comes from a scan of sysfs ([`Topology::scan`]) or from a fixture file, and is never changed: what would be
/// different after a change is computed from it. Functions are in the order of their addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topology {
    host: Host,
    functions: Vec<Function>,
    tree: Tree,
}

impl Topology {
    /// Puts facts about functions together. Two facts with one address: the first counts.
    pub(crate) fn build(host: Host, mut raw: Vec<RawFunction>) -> Self {
        raw.sort_by_key(|raw| raw.sbdf);
        raw.dedup_by_key(|raw| raw.sbdf);
        let mut functions: Vec<Function> = raw.into_iter().map(Function::new).collect();
        let tree = Tree::build(&functions);
        function::settle(&mut functions, &tree);
        Self {
            host,
            functions,
            tree,
        }
    }

    /// What is known of the host apart from its PCI functions.
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// All functions, in the order of their addresses.
    #[must_use]
    pub fn functions(&self) -> &[Function] {
        &self.functions
    }

    /// The function with this address.
    #[must_use]
    pub fn get(&self, sbdf: Sbdf) -> Option<&Function> {
        self.id(sbdf).and_then(|id| self.functions.get(id.index()))
    }

    /// The root buses, in the order of their numbers.
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
    /// For a virtual function it is the bridge above its physical function
    /// (linux 7.2 include/linux/pci.h: `pci_upstream_bridge()`).
    #[must_use]
    pub fn upstream(&self, sbdf: Sbdf) -> Option<&Function> {
        let parent = self.tree.parent(self.id(sbdf)?)?;
        self.functions.get(parent.index())
    }

    /// The bridges above a function, the nearest first.
    pub fn ancestors(&self, sbdf: Sbdf) -> impl Iterator<Item = &Function> {
        let first = self.id(sbdf).and_then(|id| self.tree.parent(id));
        std::iter::successors(first, |id| self.tree.parent(*id))
            .filter_map(|id| self.functions.get(id.index()))
    }

    /// The functions directly below a bridge, virtual ones included, in the order of their addresses.
    pub fn children(&self, sbdf: Sbdf) -> impl Iterator<Item = &Function> {
        let ids = self.id(sbdf).map_or(&[][..], |id| self.tree.children(id));
        ids.iter().filter_map(|id| self.functions.get(id.index()))
    }

    /// All functions below a bridge, at any depth, each bridge before what is below it.
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

    /// The functions on a root bus, virtual ones included, in the order of their addresses.
    pub fn on_root_bus(&self, root: &RootBus) -> impl Iterator<Item = &Function> {
        self.tree
            .on_root(root)
            .iter()
            .filter_map(|id| self.functions.get(id.index()))
    }

    /// The virtual functions of a physical function, in the order of their addresses.
    pub fn virtual_functions(&self, physical: Sbdf) -> impl Iterator<Item = &Function> {
        self.functions
            .iter()
            .filter(move |f| f.physical_function() == Some(physical))
    }

    /// The BARs of a function with their sizes. Empty if sysfs did not tell.
    #[must_use]
    pub fn bars(&self, function: &Function) -> Vec<Bar> {
        resource::bars(self, function)
    }

    /// Whether any function has an IOMMU group: whether an IOMMU is in use.
    #[must_use]
    pub fn has_groups(&self) -> bool {
        self.functions.iter().any(|f| f.group().is_some())
    }

    /// Whether anything that decisions need was out of the reader's sight.
    #[must_use]
    pub fn needs_privilege(&self) -> bool {
        self.functions
            .iter()
            .any(|f| f.config().hidden == Some(crate::Unreadable::Unprivileged))
    }

    pub(crate) fn id(&self, sbdf: Sbdf) -> Option<FunctionId> {
        let index = self
            .functions
            .binary_search_by_key(&sbdf, Function::sbdf)
            .ok()?;
        Some(FunctionId::new(index))
    }

    pub(crate) fn function(&self, id: FunctionId) -> Option<&Function> {
        self.functions.get(id.index())
    }

    pub(crate) fn tree(&self) -> &Tree {
        &self.tree
    }
}
