//! One PCI function.

use super::tree::Tree;
use super::{FunctionId, Parent, RawFunction, ResourceLines};
use crate::config::{Acs, BridgeWindows, Config, ConfigSpace, HeaderLayout, Ids, PortType};
use crate::{DriverKind, GroupId, Sbdf};

/// A PCI function, as sysfs and its configuration space describe it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Function {
    raw: RawFunction,
    config: Config,
    port_type: PortType,
    multifunction: bool,
}

impl Function {
    pub(super) fn new(raw: RawFunction) -> Self {
        let config = Config::decode(&raw.space);
        let port_type = match (config.express, config.hidden) {
            (Some(express), _) => express.port_type,
            (None, Some(_)) => PortType::Unknown,
            (None, None) => PortType::Conventional,
        };
        Self {
            raw,
            config,
            port_type,
            multifunction: false,
        }
    }

    /// The address.
    #[must_use]
    pub fn sbdf(&self) -> Sbdf {
        self.raw.sbdf
    }

    /// Vendor, device and subsystem; of a virtual function as the kernel knows it, not as it reads itself.
    #[must_use]
    pub fn ids(&self) -> Ids {
        match (&self.raw.known_as, &self.config.header) {
            (Some(known), _) => known.ids,
            (None, Some(header)) => header.ids,
            (None, None) => Ids {
                vendor: 0xffff,
                device: 0xffff,
                ..Ids::default()
            },
        }
    }

    /// Class, subclass and programming interface in bits 23:0.
    #[must_use]
    pub fn class(&self) -> u32 {
        match (&self.raw.known_as, &self.config.header) {
            (Some(known), _) => known.class,
            (None, Some(header)) => header.class,
            (None, None) => 0xff_ffff,
        }
    }

    /// The type, as Linux uses it: a downstream port below a downstream port is taken for an upstream port, and the
    /// other way round (linux 7.2 drivers/pci/probe.c: `set_pcie_port_type()`).
    #[must_use]
    pub fn port_type(&self) -> PortType {
        self.port_type
    }

    /// Whether Linux takes it for a part of a device with several functions now: bit 7 of its header type, or any
    /// function but the first (linux 7.2 drivers/pci/probe.c: `pci_scan_slot()`); never a virtual function.
    #[must_use]
    pub fn is_multifunction(&self) -> bool {
        self.multifunction
    }

    /// What its configuration space says.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The bytes of its configuration space.
    #[must_use]
    pub fn space(&self) -> &ConfigSpace {
        &self.raw.space
    }

    /// Its ACS capability.
    #[must_use]
    pub fn acs(&self) -> &Acs {
        &self.config.acs
    }

    /// Whether there is a bus below it: a port or bridge, by the layout of its header.
    #[must_use]
    pub fn is_bridge(&self) -> bool {
        matches!(
            self.config.header.as_ref().map(|h| &h.layout),
            Some(HeaderLayout::Bridge { .. } | HeaderLayout::CardBus)
        )
    }

    /// The number of the bus below a PCI-to-PCI bridge.
    #[must_use]
    pub fn secondary_bus(&self) -> Option<u8> {
        match self.config.header.as_ref()?.layout {
            HeaderLayout::Bridge { secondary, .. } if secondary != 0 => Some(secondary),
            _ => None,
        }
    }

    /// The highest number of a bus below a PCI-to-PCI bridge.
    #[must_use]
    pub fn subordinate_bus(&self) -> Option<u8> {
        match self.config.header.as_ref()?.layout {
            HeaderLayout::Bridge { subordinate, .. } if subordinate != 0 => Some(subordinate),
            _ => None,
        }
    }

    /// The addresses that a PCI-to-PCI bridge forwards downstream.
    #[must_use]
    pub fn windows(&self) -> Option<&BridgeWindows> {
        match &self.config.header.as_ref()?.layout {
            HeaderLayout::Bridge { windows, .. } => Some(windows),
            _ => None,
        }
    }

    /// The driver bound to it.
    #[must_use]
    pub fn driver(&self) -> Option<&str> {
        self.raw.driver.as_deref()
    }

    /// The kind of the driver bound to it.
    #[must_use]
    pub fn driver_kind(&self) -> DriverKind {
        DriverKind::of(self.driver())
    }

    /// Its IOMMU group.
    #[must_use]
    pub fn group(&self) -> Option<GroupId> {
        self.raw.group
    }

    /// The NUMA node it is attached to.
    #[must_use]
    pub fn numa_node(&self) -> Option<u32> {
        self.raw.numa_node
    }

    /// The words of `reset_method`, in the order in which Linux tries them; `None` if it has none at all.
    pub fn reset_method_words(&self) -> Option<impl Iterator<Item = &str>> {
        self.raw
            .reset_methods
            .as_deref()
            .map(str::split_ascii_whitespace)
    }

    /// The physical function of a virtual one.
    #[must_use]
    pub fn physical_function(&self) -> Option<Sbdf> {
        self.raw.physical_function
    }

    /// Whether it is a virtual function.
    #[must_use]
    pub fn is_virtual(&self) -> bool {
        self.raw.physical_function.is_some()
    }

    /// Whether the driver for native PCI Express hot-plug serves this port.
    #[must_use]
    pub fn has_native_hotplug(&self) -> bool {
        self.raw.native_hotplug
    }

    /// Whether the bus of a virtual function has no bridge of its own, because its number is not that of its
    /// physical function's bus (linux 7.2 drivers/pci/iov.c: `virtfn_add_bus()`).
    pub(crate) fn on_virtual_bus(&self) -> bool {
        self.raw
            .physical_function
            .is_some_and(|physical| physical.bus() != self.sbdf().bus())
    }

    pub(crate) fn raw(&self) -> &RawFunction {
        &self.raw
    }

    pub(crate) fn parent(&self) -> Parent {
        self.raw.parent
    }

    pub(crate) fn resources(&self) -> &ResourceLines {
        &self.raw.resources
    }

    /// Bit 7 of the header type; a virtual function's is ignored (linux 7.2 drivers/pci/iov.c:
    /// `pci_iov_add_virtfn()`).
    pub(crate) fn multifunction_bit(&self) -> bool {
        !self.is_virtual() && self.config.header.as_ref().is_some_and(|h| h.multifunction)
    }
}

/// Fills in what depends on the functions above: corrected types, and who counts as part of a multifunction device.
pub(super) fn settle(functions: &mut [Function], tree: &Tree) {
    for id in tree.top_down() {
        let above = tree
            .parent(id)
            .and_then(|parent| functions.get(parent.index()));
        let above_type = above.map(Function::port_type);
        let ari = above.is_some_and(forwards_ari);
        if let Some(function) = functions.get_mut(id.index()) {
            function.port_type = corrected(function.port_type, above_type);
            function.multifunction =
                function.multifunction_bit() || is_later_function(function, ari);
        }
    }
}

/// Whether Linux finds this function in a slot after function 0.
pub(crate) fn is_later_function(function: &Function, ari: bool) -> bool {
    let number = if ari {
        function.sbdf().devfn()
    } else {
        function.sbdf().function()
    };
    number != 0 && !function.is_virtual()
}

/// Whether a downstream port forwards to functions above 7, so that its bus has one device with up to 256.
pub(crate) fn forwards_ari(port: &Function) -> bool {
    port.config().express.is_some_and(|e| e.ari_forwarding)
}

fn corrected(own: PortType, above: Option<PortType>) -> PortType {
    match (own, above) {
        (
            PortType::SwitchDownstream,
            Some(PortType::RootPort | PortType::SwitchDownstream | PortType::PciToPcieBridge),
        ) => PortType::SwitchUpstream,
        (PortType::SwitchUpstream, Some(PortType::SwitchUpstream)) => PortType::SwitchDownstream,
        _ => own,
    }
}

impl Function {
    /// The id among `functions`, which are in the order of their addresses.
    pub(super) fn position(functions: &[Self], sbdf: Sbdf) -> Option<FunctionId> {
        functions
            .binary_search_by_key(&sbdf, Self::sbdf)
            .ok()
            .map(FunctionId::new)
    }
}
