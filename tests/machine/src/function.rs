//! The description of a PCI function.

/// Type of a function (PCIe r6.0 §7.5.3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Without a PCI Express capability.
    Conventional,
    /// PCI-to-PCI bridge without a PCI Express capability.
    ConventionalBridge,
    /// PCI Express endpoint.
    Endpoint,
    /// Legacy PCI Express endpoint.
    LegacyEndpoint,
    /// Root port.
    RootPort,
    /// Upstream port of a switch.
    Upstream,
    /// Downstream port of a switch.
    Downstream,
    /// PCI Express to PCI bridge.
    PcieToPci,
    /// PCI to PCI Express bridge.
    PciToPcie,
    /// Root complex integrated endpoint.
    Integrated,
    /// Root complex event collector.
    EventCollector,
    /// A type that the specification does not define.
    Reserved,
}

impl Kind {
    /// The number in the PCI Express capability, if the function has one.
    pub(crate) fn number(self) -> Option<u16> {
        match self {
            Self::Conventional | Self::ConventionalBridge => None,
            Self::Endpoint => Some(0),
            Self::LegacyEndpoint => Some(1),
            Self::RootPort => Some(4),
            Self::Upstream => Some(5),
            Self::Downstream => Some(6),
            Self::PcieToPci => Some(7),
            Self::PciToPcie => Some(8),
            Self::Integrated => Some(9),
            Self::EventCollector => Some(10),
            Self::Reserved => Some(12),
        }
    }

    /// Size of the configuration space in bytes.
    pub(crate) fn space(self) -> usize {
        if self.number().is_some() { 4096 } else { 256 }
    }

    pub(crate) fn is_bridge(self) -> bool {
        matches!(
            self,
            Self::RootPort
                | Self::Upstream
                | Self::Downstream
                | Self::PcieToPci
                | Self::PciToPcie
                | Self::ConventionalBridge
        )
    }

    pub(crate) fn is_downstream_port(self) -> bool {
        matches!(self, Self::RootPort | Self::Downstream)
    }
}

/// Type of a memory BAR.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BarKind {
    /// 32-bit register.
    Memory32,
    /// 64-bit register, not prefetchable: its address is below 4 GiB.
    Memory64,
    /// 64-bit register, prefetchable.
    Prefetchable64,
}

impl BarKind {
    /// The low bits of the register.
    pub(crate) fn register(self) -> u8 {
        match self {
            Self::Memory32 => 0x0,
            Self::Memory64 => 0x4,
            Self::Prefetchable64 => 0xc,
        }
    }

    /// Linux's flags of the resource.
    pub(crate) fn flags(self) -> u64 {
        match self {
            Self::Memory32 => 0x0004_0200,
            Self::Memory64 => 0x0014_0204,
            Self::Prefetchable64 => 0x0014_220c,
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Bar {
    pub(crate) index: u16,
    pub(crate) kind: BarKind,
    pub(crate) size: u64,
}

/// One MiB.
pub const MIB: u64 = 1 << 20;
/// One GiB.
pub const GIB: u64 = 1 << 30;

/// Virtual functions, all of them enabled.
#[derive(Debug, Clone, Copy)]
pub struct Virtual {
    /// Number of functions.
    pub count: u16,
    /// Device ID.
    pub device: u16,
    /// Size of BAR 0 of each function, in bytes.
    pub bar_size: u64,
    /// Driver of all functions.
    pub driver: Option<&'static str>,
    /// Routing ID of the first function, relative to the physical function.
    pub first: u16,
    /// Distance of their routing IDs.
    pub stride: u16,
}

/// The IOMMU group of a function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// A new group.
    Own,
    /// The group of the function above, or of the function that provides the root bus.
    OfPort,
    /// The group of the first function of the same device.
    OfDevice,
    /// No group.
    None,
}

/// A PCI function.
#[derive(Debug, Clone)]
pub struct Function {
    pub(crate) kind: Kind,
    pub(crate) device: u8,
    pub(crate) number: u8,
    pub(crate) ids: (u16, u16),
    pub(crate) subsystem: (u16, u16),
    pub(crate) class: u32,
    /// The command register. By default, functions with a driver are bus masters.
    pub(crate) command: Option<u16>,
    pub(crate) bars: Vec<Bar>,
    /// Power management: the control register.
    pub(crate) power: Option<u16>,
    pub(crate) msi_x: bool,
    /// Advanced Features, the FLR of conventional PCI.
    pub(crate) advanced_features: bool,
    /// ACS: capability and control.
    pub(crate) acs: Option<(u16, u16)>,
    /// The four bytes after the ACS control: an egress vector, or the control of Intel's doubleword registers.
    pub(crate) acs_word: u32,
    /// Whether ATS is enabled.
    pub(crate) ats: Option<bool>,
    /// ARI: forwarding at a port, the capability at other functions.
    pub(crate) ari: bool,
    pub(crate) flr: bool,
    /// Generation and lanes of the link now, and at most.
    pub(crate) link: (u16, u16, u16, u16),
    /// Port number.
    pub(crate) port: u8,
    /// Number of the hotplug slot.
    pub(crate) slot: Option<u32>,
    /// Whether pciehp drives the slot.
    pub(crate) native_hotplug: bool,
    pub(crate) virtual_functions: Option<Virtual>,
    /// CXL port: the control that unmasks resets.
    pub(crate) cxl_port: Option<u16>,
    /// Whether all reads return ones.
    pub(crate) dead: bool,
    pub(crate) driver: Option<String>,
    pub(crate) group: Group,
    pub(crate) resets: String,
}

impl Function {
    /// A function with vendor and device ID and class, which has what all of this kind have.
    pub fn new(kind: Kind, ids: (u16, u16), class: u32) -> Self {
        Self {
            kind,
            device: 0,
            number: 0,
            ids,
            subsystem: ids,
            class,
            command: None,
            bars: Vec::new(),
            // No soft reset.
            power: Some(0x0008),
            msi_x: kind.number().is_some(),
            advanced_features: false,
            acs: None,
            acs_word: 0,
            ats: None,
            ari: false,
            flr: false,
            link: (0, 0, 0, 0),
            port: 0,
            slot: None,
            native_hotplug: false,
            virtual_functions: None,
            cxl_port: None,
            dead: false,
            driver: None,
            group: Group::Own,
            resets: String::new(),
        }
    }

    /// Sets device and function number. The device number is also the port number.
    #[must_use]
    pub fn at(mut self, device: u8, number: u8) -> Self {
        self.device = device;
        self.number = number;
        self.port = device;
        self
    }

    /// Adds a BAR.
    #[must_use]
    pub fn bar(mut self, index: u16, kind: BarKind, size: u64) -> Self {
        self.bars.push(Bar { index, kind, size });
        self
    }

    /// Adds ACS with capability and control.
    #[must_use]
    pub fn acs(mut self, capability: u16, control: u16) -> Self {
        self.acs = Some((capability, control));
        self
    }

    /// Removes ACS.
    #[must_use]
    pub fn no_acs(mut self) -> Self {
        self.acs = None;
        self
    }

    /// Adds ATS.
    #[must_use]
    pub fn ats(mut self, enabled: bool) -> Self {
        self.ats = Some(enabled);
        self
    }

    /// Adds ARI.
    #[must_use]
    pub fn ari(mut self) -> Self {
        self.ari = true;
        self
    }

    /// Adds FLR.
    #[must_use]
    pub fn flr(mut self) -> Self {
        self.flr = true;
        self.resets = "flr bus".to_owned();
        self
    }

    /// Sets the reset methods.
    #[must_use]
    pub fn resets(mut self, words: &str) -> Self {
        self.resets = words.to_owned();
        self
    }

    /// Sets generation and lanes of the link.
    #[must_use]
    pub fn link(mut self, generation: u16, lanes: u16) -> Self {
        self.link = (generation, lanes, generation, lanes);
        self
    }

    /// Sets generation and lanes of a link that is slower or narrower than both ends can.
    #[must_use]
    pub fn degraded_to(mut self, generation: u16, lanes: u16) -> Self {
        (self.link.0, self.link.1) = (generation, lanes);
        self
    }

    /// Adds a hotplug slot that pciehp drives.
    #[must_use]
    pub fn slot(mut self, number: u32) -> Self {
        self.slot = Some(number);
        self.native_hotplug = true;
        self
    }

    /// Adds virtual functions.
    #[must_use]
    pub fn virtual_functions(mut self, virtual_functions: Virtual) -> Self {
        self.virtual_functions = Some(virtual_functions);
        self
    }

    /// Binds a driver.
    #[must_use]
    pub fn driver(mut self, driver: &str) -> Self {
        self.driver = Some(driver.to_owned());
        self
    }

    /// Sets the IOMMU group.
    #[must_use]
    pub fn group(mut self, group: Group) -> Self {
        self.group = group;
        self
    }
}

/// What Linux enables: source validation, redirect of requests and completions, upstream forwarding.
pub(crate) const LINUX_ACS: u16 = 0x001d;
/// What root ports and switches usually implement: all but egress control.
pub(crate) const USUAL_ACS: u16 = 0x005f;

/// A root port with ACS.
pub fn root_port(ids: (u16, u16)) -> Function {
    Function::new(Kind::RootPort, ids, 0x06_0400)
        .acs(USUAL_ACS, LINUX_ACS)
        .driver("pcieport")
        .ari()
}

/// The upstream port of a switch.
pub fn upstream(ids: (u16, u16)) -> Function {
    Function::new(Kind::Upstream, ids, 0x06_0400).driver("pcieport")
}

/// A downstream port with ACS.
pub fn downstream(ids: (u16, u16)) -> Function {
    Function::new(Kind::Downstream, ids, 0x06_0400)
        .acs(USUAL_ACS, LINUX_ACS)
        .driver("pcieport")
        .ari()
}

/// A host bridge.
pub fn host_bridge(ids: (u16, u16)) -> Function {
    Function::new(Kind::Conventional, ids, 0x06_0000)
}
