//! The PCI Express capability: device/port type and link.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::ConfigSpace;
use super::spec::express;

/// Device/port type of a function (PCIe r6.0 §7.5.3.2, Device/Port Type).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PortType {
    /// An endpoint (0).
    Endpoint,
    /// A legacy endpoint, with properties of conventional PCI (1).
    LegacyEndpoint,
    /// A root port (4).
    RootPort,
    /// The upstream port of a switch (5).
    SwitchUpstream,
    /// A downstream port of a switch (6).
    SwitchDownstream,
    /// A bridge from PCI Express to PCI or PCI-X (7).
    PcieToPciBridge,
    /// A bridge from PCI or PCI-X to PCI Express (8).
    PciToPcieBridge,
    /// An endpoint inside the root complex (9).
    RcEndpoint,
    /// A root complex event collector (10).
    RcEventCollector,
    /// A type that the specification does not define.
    Reserved(u8),
    /// A function without a PCI Express capability.
    Conventional,
    /// The capability could not be read.
    Unknown,
}

impl PortType {
    /// The type for the number in bits 7:4 of the capabilities register.
    pub(super) fn from_number(number: u8) -> Self {
        match number {
            0 => Self::Endpoint,
            1 => Self::LegacyEndpoint,
            4 => Self::RootPort,
            5 => Self::SwitchUpstream,
            6 => Self::SwitchDownstream,
            7 => Self::PcieToPciBridge,
            8 => Self::PciToPcieBridge,
            9 => Self::RcEndpoint,
            10 => Self::RcEventCollector,
            other => Self::Reserved(other),
        }
    }

    /// Whether the function has a PCI Express capability.
    #[must_use]
    pub const fn is_express(self) -> bool {
        !matches!(self, Self::Conventional | Self::Unknown)
    }

    /// Whether the function is a root port or a downstream port of a switch, that is, a port with a link below it.
    #[must_use]
    pub const fn is_downstream(self) -> bool {
        matches!(self, Self::RootPort | Self::SwitchDownstream)
    }

    /// Whether peer-to-peer requests can be routed by this function: a port of a switch or root complex, or a bridge.
    #[must_use]
    pub const fn is_port(self) -> bool {
        matches!(
            self,
            Self::RootPort
                | Self::SwitchUpstream
                | Self::SwitchDownstream
                | Self::PcieToPciBridge
                | Self::PciToPcieBridge
        )
    }
}

impl fmt::Display for PortType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Endpoint => "endpoint",
            Self::LegacyEndpoint => "legacy endpoint",
            Self::RootPort => "root port",
            Self::SwitchUpstream => "switch upstream port",
            Self::SwitchDownstream => "switch downstream port",
            Self::PcieToPciBridge => "PCIe-to-PCI bridge",
            Self::PciToPcieBridge => "PCI-to-PCIe bridge",
            Self::RcEndpoint => "root complex integrated endpoint",
            Self::RcEventCollector => "root complex event collector",
            Self::Reserved(number) => return write!(f, "PCIe function of unknown type {number}"),
            Self::Conventional => "conventional PCI function",
            Self::Unknown => "function of unreadable type",
        })
    }
}

/// Speed and width of a link, as encoded in the registers (PCIe r6.0 §7.5.3.6, §7.5.3.8).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// Generation, from 1 (2.5 GT/s) to 6 (64 GT/s). 0 if there is no link.
    pub generation: u8,
    /// Number of lanes. 0 if there is no link.
    pub lanes: u8,
    /// The highest generation that the port supports.
    pub max_generation: u8,
    /// The largest number of lanes that the port supports.
    pub max_lanes: u8,
    /// Whether the data link layer is up. Valid only for ports that report it.
    pub active: bool,
    /// The port's number in its switch or root complex, which is its index in egress control vectors.
    pub port_number: u8,
}

impl Link {
    /// The slowest link in PCI Express: 2.5 GT/s on one lane.
    pub const SLOWEST: Self = Self::at_most(1, 1);

    /// A link with the maximum and current speed `generation` and width `lanes`.
    #[must_use]
    pub const fn at_most(generation: u8, lanes: u8) -> Self {
        Self {
            generation,
            lanes,
            max_generation: generation,
            max_lanes: lanes,
            active: true,
            port_number: 0,
        }
    }

    fn decode(space: &ConfigSpace, cap: u16) -> Option<Self> {
        let capabilities = space.u32(cap.saturating_add(express::LINK_CAPABILITIES))?;
        let status = space.u16(cap.saturating_add(express::LINK_STATUS))?;
        let field = |value: u32| u8::try_from(value).unwrap_or(u8::MAX);
        Some(Self {
            generation: field(u32::from(status) & 0xf),
            lanes: field((u32::from(status) >> 4) & 0x3f),
            max_generation: field(capabilities & 0xf),
            max_lanes: field((capabilities >> 4) & 0x3f),
            active: status & express::LINK_STATUS_ACTIVE != 0,
            port_number: field(capabilities >> 24),
        })
    }

    /// Transfer rate per lane of a generation, in GT/s. `None` for undefined generations.
    #[must_use]
    pub fn gigatransfers(generation: u8) -> Option<&'static str> {
        match generation {
            1 => Some("2.5"),
            2 => Some("5"),
            3 => Some("8"),
            4 => Some("16"),
            5 => Some("32"),
            6 => Some("64"),
            _ => None,
        }
    }
}

/// The slot of a root or downstream port (PCIe r6.0 §7.5.3.9).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// Whether the slot supports hot-plug.
    pub hotplug: bool,
    /// The slot number printed on the chassis.
    pub physical_number: u16,
}

/// The PCI Express capability.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Express {
    /// Offset of the capability in configuration space.
    pub offset: u16,
    /// The type in the register. [`Function::port_type`](crate::Function::port_type) is the type that Linux uses, with
    /// impossible types corrected.
    pub port_type: PortType,
    /// Whether the function supports Function Level Reset.
    pub flr: bool,
    /// The slot, for a port that has one.
    pub slot: Option<Slot>,
    /// The link. `None` if there is no link or its registers could not be read.
    pub link: Option<Link>,
    /// Whether a downstream port can forward to functions above 7 (ARI).
    pub ari_forwarding_supported: bool,
    /// Whether ARI forwarding is on.
    pub ari_forwarding: bool,
}

impl Express {
    pub(super) fn decode(space: &ConfigSpace, offset: u16) -> Option<Self> {
        let at = |register: u16| offset.saturating_add(register);
        let flags = space.u16(at(express::FLAGS))?;
        let number = u8::try_from((flags >> 4) & 0xf).unwrap_or(0xf);
        let port_type = PortType::from_number(number);
        let slot_implemented = flags & express::FLAGS_SLOT != 0 && port_type.is_downstream();
        let slot = slot_implemented
            .then(|| space.u32(at(express::SLOT_CAPABILITIES)))
            .flatten()
            .map(|capabilities| Slot {
                hotplug: capabilities & express::SLOT_CAPABILITIES_HOTPLUG != 0,
                physical_number: u16::try_from(capabilities >> 19).unwrap_or(u16::MAX),
            });
        let inside_root_complex =
            matches!(port_type, PortType::RcEndpoint | PortType::RcEventCollector);
        let device_capabilities = space.u32(at(express::DEVICE_CAPABILITIES)).unwrap_or(0);
        // Capability version 2 and later have the second half of the registers (§7.5.3.2).
        let second = flags & 0xf >= 2;
        let capabilities_2 = second
            .then(|| space.u32(at(express::DEVICE_CAPABILITIES_2)))
            .flatten();
        let control_2 = second
            .then(|| space.u16(at(express::DEVICE_CONTROL_2)))
            .flatten();
        Some(Self {
            offset,
            port_type,
            flr: device_capabilities & express::DEVICE_CAPABILITIES_FLR != 0,
            slot,
            link: if inside_root_complex {
                None
            } else {
                Link::decode(space, offset)
            },
            ari_forwarding_supported: capabilities_2.unwrap_or(0)
                & express::DEVICE_CAPABILITIES_2_ARI
                != 0,
            ari_forwarding: control_2.unwrap_or(0) & express::DEVICE_CONTROL_2_ARI != 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space(bytes: &[(usize, u8)]) -> ConfigSpace {
        let mut all = vec![0; 256];
        for (offset, byte) in bytes {
            all[0x40 + offset] = *byte;
        }
        ConfigSpace::new(&all)
    }

    #[test]
    fn every_type_has_its_number() {
        for (number, port_type, downstream) in [
            (0, PortType::Endpoint, false),
            (1, PortType::LegacyEndpoint, false),
            (2, PortType::Reserved(2), false),
            (4, PortType::RootPort, true),
            (5, PortType::SwitchUpstream, false),
            (6, PortType::SwitchDownstream, true),
            (7, PortType::PcieToPciBridge, false),
            (8, PortType::PciToPcieBridge, false),
            (9, PortType::RcEndpoint, false),
            (10, PortType::RcEventCollector, false),
            (15, PortType::Reserved(15), false),
        ] {
            let express = Express::decode(&space(&[(2, number << 4 | 2)]), 0x40).unwrap();
            assert_eq!(express.port_type, port_type);
            assert_eq!(port_type.is_downstream(), downstream);
            assert!(port_type.is_express());
        }
        assert!(!PortType::Conventional.is_express());
    }

    #[test]
    fn a_root_port_with_a_slot_and_a_link() {
        let bytes = [
            (0x02, 0x42),
            (0x03, 0x01),
            (0x07, 0x10),
            (0x0c, 0x04),
            (0x0d, 0x01),
            (0x0f, 0x09),
            (0x12, 0x83),
            (0x13, 0x20),
            (0x14, 0x40),
            (0x16, 0x28),
            (0x24, 0x20),
            (0x28, 0x20),
        ];
        let express = Express::decode(&space(&bytes), 0x40).unwrap();
        assert!(express.flr && express.ari_forwarding_supported && express.ari_forwarding);
        assert_eq!(
            express.slot,
            Some(Slot {
                hotplug: true,
                physical_number: 5
            })
        );
        assert_eq!(
            express.link,
            Some(Link {
                generation: 3,
                lanes: 8,
                max_generation: 4,
                max_lanes: 16,
                active: true,
                port_number: 9,
            })
        );
    }

    #[test]
    fn version_1_has_no_second_registers_and_an_endpoint_no_slot() {
        let bytes = [
            (0x02, 0x01),
            (0x03, 0x01),
            (0x24, 0x20),
            (0x28, 0x20),
            (0x14, 0x40),
        ];
        let express = Express::decode(&space(&bytes), 0x40).unwrap();
        assert!(!express.ari_forwarding_supported && !express.ari_forwarding);
        assert_eq!(express.slot, None);
    }

    #[test]
    fn registers_beyond_the_end_are_missing_not_zero() {
        let mut all = vec![0; 256];
        all[0xfc] = 0x10;
        all[0xfe] = 0x42;
        let express = Express::decode(&ConfigSpace::new(&all), 0xfc).unwrap();
        assert_eq!(
            (express.port_type, express.link, express.slot),
            (PortType::RootPort, None, None)
        );
    }
}
