//! A PCI function to put into a machine.

/// What a function is to PCI Express.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Conventional,
    Endpoint,
    LegacyEndpoint,
    RootPort,
    Upstream,
    Downstream,
    PcieToPci,
    /// A PCI-to-PCI bridge without a PCI Express capability.
    ConventionalBridge,
    Integrated,
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
            Self::Integrated => Some(9),
        }
    }

    pub(crate) fn is_bridge(self) -> bool {
        matches!(
            self,
            Self::RootPort
                | Self::Upstream
                | Self::Downstream
                | Self::PcieToPci
                | Self::ConventionalBridge
        )
    }

    pub(crate) fn is_downstream_port(self) -> bool {
        matches!(self, Self::RootPort | Self::Downstream)
    }
}

/// Where a BAR may lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BarKind {
    /// Below 4 GiB.
    Memory32,
    /// A 64-bit register that lies below 4 GiB, as ones that are not prefetchable do.
    Memory64,
    Prefetchable64,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Bar {
    pub(crate) index: u16,
    pub(crate) kind: BarKind,
    pub(crate) size: u64,
}

pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const GIB: u64 = 1 << 30;

/// Virtual functions, all of them enabled.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Virtual {
    pub(crate) count: u16,
    pub(crate) device: u16,
    pub(crate) bar_size: u64,
    pub(crate) driver: Option<&'static str>,
}

/// The IOMMU group that a function is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Group {
    Own,
    /// That of the function above, or of the function that provides the root bus.
    OfPort,
    /// That of the first function in the same device.
    OfDevice,
    None,
}

#[derive(Debug, Clone)]
pub(crate) struct Function {
    pub(crate) kind: Kind,
    pub(crate) device: u8,
    pub(crate) number: u8,
    pub(crate) ids: (u16, u16),
    pub(crate) subsystem: (u16, u16),
    pub(crate) class: u32,
    pub(crate) bars: Vec<Bar>,
    /// Capability and control.
    pub(crate) acs: Option<(u16, u16)>,
    /// Whether there is ATS, and if so whether it is on.
    pub(crate) ats: Option<bool>,
    pub(crate) ari: bool,
    pub(crate) flr: bool,
    /// Present and up: generation and lanes now, at most.
    pub(crate) link: (u16, u16, u16, u16),
    pub(crate) slot: Option<u32>,
    pub(crate) virtual_functions: Option<Virtual>,
    pub(crate) driver: Option<&'static str>,
    pub(crate) group: Group,
    pub(crate) resets: &'static str,
}

impl Function {
    pub(crate) fn new(kind: Kind, ids: (u16, u16), class: u32) -> Self {
        Self {
            kind,
            device: 0,
            number: 0,
            ids,
            subsystem: ids,
            class,
            bars: Vec::new(),
            acs: None,
            ats: None,
            ari: false,
            flr: false,
            link: (0, 0, 0, 0),
            slot: None,
            virtual_functions: None,
            driver: None,
            group: Group::Own,
            resets: "",
        }
    }

    pub(crate) fn at(mut self, device: u8, number: u8) -> Self {
        self.device = device;
        self.number = number;
        self
    }

    pub(crate) fn bar(mut self, index: u16, kind: BarKind, size: u64) -> Self {
        self.bars.push(Bar { index, kind, size });
        self
    }

    pub(crate) fn acs(mut self, capability: u16, control: u16) -> Self {
        self.acs = Some((capability, control));
        self
    }

    pub(crate) fn no_acs(mut self) -> Self {
        self.acs = None;
        self
    }

    pub(crate) fn ats(mut self, enabled: bool) -> Self {
        self.ats = Some(enabled);
        self
    }

    pub(crate) fn ari(mut self) -> Self {
        self.ari = true;
        self
    }

    pub(crate) fn flr(mut self) -> Self {
        self.flr = true;
        self.resets = "flr bus";
        self
    }

    pub(crate) fn resets(mut self, words: &'static str) -> Self {
        self.resets = words;
        self
    }

    pub(crate) fn link(mut self, generation: u16, lanes: u16) -> Self {
        self.link = (generation, lanes, generation, lanes);
        self
    }

    /// A link that came up slower or narrower than both ends can.
    pub(crate) fn degraded_to(mut self, generation: u16, lanes: u16) -> Self {
        (self.link.0, self.link.1) = (generation, lanes);
        self
    }

    pub(crate) fn slot(mut self, number: u32) -> Self {
        self.slot = Some(number);
        self
    }

    pub(crate) fn virtual_functions(mut self, virtual_functions: Virtual) -> Self {
        self.virtual_functions = Some(virtual_functions);
        self
    }

    pub(crate) fn driver(mut self, driver: &'static str) -> Self {
        self.driver = Some(driver);
        self
    }

    pub(crate) fn group(mut self, group: Group) -> Self {
        self.group = group;
        self
    }
}

/// What Linux switches on: source validation, redirect of requests and completions, upstream forwarding.
pub(crate) const LINUX_ACS: u16 = 0x001d;
/// What root ports and switches usually implement: all but egress control.
pub(crate) const USUAL_ACS: u16 = 0x005f;

pub(crate) fn root_port(ids: (u16, u16)) -> Function {
    Function::new(Kind::RootPort, ids, 0x06_0400)
        .acs(USUAL_ACS, LINUX_ACS)
        .driver("pcieport")
        .ari()
}

pub(crate) fn upstream(ids: (u16, u16)) -> Function {
    Function::new(Kind::Upstream, ids, 0x06_0400).driver("pcieport")
}

pub(crate) fn downstream(ids: (u16, u16)) -> Function {
    Function::new(Kind::Downstream, ids, 0x06_0400)
        .acs(USUAL_ACS, LINUX_ACS)
        .driver("pcieport")
        .ari()
}

pub(crate) fn host_bridge(ids: (u16, u16)) -> Function {
    Function::new(Kind::Conventional, ids, 0x06_0000)
}
