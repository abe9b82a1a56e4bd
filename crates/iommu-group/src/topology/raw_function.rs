//! Undecoded facts about one function from sysfs.

use crate::config::{ConfigSpace, Ids};
use crate::topology::ResourceLines;
use crate::{GroupId, Sbdf};

/// Facts about one function from sysfs. A scan collects them and a fixture stores them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RawFunction {
    pub(crate) sbdf: Sbdf,
    pub(crate) parent: Parent,
    /// The kernel's vendor, device and class IDs, if configuration space does not have them. A virtual function reads
    /// `ffff:ffff`.
    pub(crate) known_as: Option<KernelIds>,
    pub(crate) space: ConfigSpace,
    pub(crate) resources: ResourceLines,
    pub(crate) driver: Option<Box<str>>,
    pub(crate) group: Option<GroupId>,
    pub(crate) numa_node: Option<u32>,
    /// The words of `reset_method`, in their order.
    pub(crate) reset_methods: Option<Box<str>>,
    pub(crate) physical_function: Option<Sbdf>,
    /// Whether the native PCI Express hot-plug driver serves this port.
    pub(crate) native_hotplug: bool,
}

/// The kernel's IDs of a function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct KernelIds {
    pub(crate) ids: Ids,
    /// Class, subclass and programming interface in bits 23:0.
    pub(crate) class: u32,
}

/// The parent of a function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Parent {
    /// Below a bridge.
    Bridge(Sbdf),
    /// On a root bus. `behind` is the function that provides the bus, such as an Intel VMD endpoint.
    Root {
        domain: u32,
        bus: u8,
        behind: Option<Sbdf>,
    },
    /// Sysfs does not name the parent. It is derived from the bus numbers of the bridges.
    ByBusNumber,
}
