//! What sysfs says of one function, before anything is made of it.

use crate::config::{ConfigSpace, Ids};
use crate::topology::ResourceLines;
use crate::{GroupId, Sbdf};

/// What sysfs says of one function. A scan gathers it, a fixture stores it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RawFunction {
    pub(crate) sbdf: Sbdf,
    pub(crate) parent: Parent,
    /// Vendor, device and class as the kernel knows them, where configuration space does not show them: a virtual
    /// function reads `ffff:ffff`.
    pub(crate) known_as: Option<KernelIds>,
    pub(crate) space: ConfigSpace,
    pub(crate) resources: ResourceLines,
    pub(crate) driver: Option<Box<str>>,
    pub(crate) group: Option<GroupId>,
    pub(crate) numa_node: Option<u32>,
    /// The words of `reset_method`, in their order.
    pub(crate) reset_methods: Option<Box<str>>,
    pub(crate) physical_function: Option<Sbdf>,
    /// The native PCI Express hot-plug driver serves this port.
    pub(crate) native_hotplug: bool,
}

/// What the kernel knows a function as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct KernelIds {
    pub(crate) ids: Ids,
    /// Class, subclass and programming interface in bits 23:0.
    pub(crate) class: u32,
}

/// Where a function hangs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Parent {
    /// Below a bridge.
    Bridge(Sbdf),
    /// On a root bus. `behind` is the function that provides the bus, as Intel's VMD does.
    Root {
        domain: u32,
        bus: u8,
        behind: Option<Sbdf>,
    },
    /// Sysfs did not say: go by the bus numbers of the bridges.
    ByBusNumber,
}
