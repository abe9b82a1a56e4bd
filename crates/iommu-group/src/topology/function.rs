//! One PCI function.

use super::{Parent, RawFunction, ResourceLines};
use crate::config::{Acs, BridgeWindows, Config, ConfigSpace, HeaderLayout, Ids, PortType};
use crate::{DriverKind, GroupId, Sbdf};

/// A PCI function, as described by sysfs and its configuration space.
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

    /// Vendor, device and subsystem IDs. For a virtual function these are the kernel's values, since its own registers
    /// read `ffff:ffff`.
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

    /// The port type that Linux uses. Linux corrects a downstream port below a downstream port to an upstream port, and
    /// an upstream port below an upstream port to a downstream port (linux 7.2 drivers/pci/probe.c:
    /// `set_pcie_port_type()`).
    #[must_use]
    pub fn port_type(&self) -> PortType {
        self.port_type
    }

    /// Whether Linux treats the function as part of a multifunction device: bit 7 of its header type is set, or it is
    /// not the first function (linux 7.2 drivers/pci/probe.c: `pci_scan_slot()`). Always false for a virtual function.
    #[must_use]
    pub fn is_multifunction(&self) -> bool {
        self.multifunction
    }

    /// The decoded configuration space.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The bytes of the configuration space.
    #[must_use]
    pub fn space(&self) -> &ConfigSpace {
        &self.raw.space
    }

    /// The ACS capability.
    #[must_use]
    pub fn acs(&self) -> &Acs {
        &self.config.acs
    }

    /// Whether the function has a bus below it: a port or bridge, according to the layout of its header.
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

    /// The highest bus number below a PCI-to-PCI bridge.
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

    /// The driver bound to the function.
    #[must_use]
    pub fn driver(&self) -> Option<&str> {
        self.raw.driver.as_deref()
    }

    /// The kind of the driver bound to the function.
    #[must_use]
    pub fn driver_kind(&self) -> DriverKind {
        DriverKind::of(self.driver())
    }

    /// The IOMMU group.
    #[must_use]
    pub fn group(&self) -> Option<GroupId> {
        self.raw.group
    }

    /// The NUMA node that the function is attached to.
    #[must_use]
    pub fn numa_node(&self) -> Option<u32> {
        self.raw.numa_node
    }

    /// The words of `reset_method`, in the order in which Linux tries them. `None` if the attribute is absent.
    pub fn reset_method_words(&self) -> Option<impl Iterator<Item = &str>> {
        self.raw
            .reset_methods
            .as_deref()
            .map(str::split_ascii_whitespace)
    }

    /// The physical function of a virtual function.
    #[must_use]
    pub fn physical_function(&self) -> Option<Sbdf> {
        self.raw.physical_function
    }

    /// Whether this is a virtual function.
    #[must_use]
    pub fn is_virtual(&self) -> bool {
        self.raw.physical_function.is_some()
    }

    /// Whether the native PCI Express hot-plug driver serves this port.
    #[must_use]
    pub fn has_native_hotplug(&self) -> bool {
        self.raw.native_hotplug
    }

    /// Whether a virtual function is on a bus without a bridge, because its bus number differs from that of its
    /// physical function (linux 7.2 drivers/pci/iov.c: `virtfn_add_bus()`).
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

    /// Sets the properties that depend on the bridge above: the corrected port type and the multifunction flag.
    pub(super) fn settle(&mut self, above: Option<PortType>, ari: bool) {
        self.port_type = corrected(self.port_type, above);
        self.multifunction = self.multifunction_bit() || is_later_function(self, ari);
    }

    /// Bit 7 of the header type. Ignored for a virtual function (linux 7.2 drivers/pci/iov.c: `pci_iov_add_virtfn()`).
    pub(crate) fn multifunction_bit(&self) -> bool {
        !self.is_virtual() && self.config.header.as_ref().is_some_and(|h| h.multifunction)
    }
}

/// Whether Linux finds this function after function 0 of the same slot.
pub(crate) fn is_later_function(function: &Function, ari: bool) -> bool {
    let number = if ari {
        function.sbdf().devfn()
    } else {
        function.sbdf().function()
    };
    number != 0 && !function.is_virtual()
}

/// Whether a downstream port forwards to functions above 7. Its bus then has one device with up to 256 functions.
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
