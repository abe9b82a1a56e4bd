//! The common header of a function.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::bar::{BarRegister, BridgeWindows};
use super::spec::{bridge, header};
use super::{ConfigSpace, bar};

/// The IDs by which drivers and quirks identify a function.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct Ids {
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Subsystem vendor ID. 0 if there is none.
    pub subsystem_vendor: u16,
    /// Subsystem device ID. 0 if there is none.
    pub subsystem_device: u16,
}

impl fmt::Display for Ids {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:04x}", self.vendor, self.device)
    }
}

/// The layout-specific part of a header, after the first 16 bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeaderLayout {
    /// Type 0: a device.
    Device {
        /// The six base address registers. The upper half of a 64-bit BAR is `None`.
        bars: [Option<BarRegister>; 6],
    },
    /// Type 1: a PCI-to-PCI bridge. All PCI Express ports have this type.
    Bridge {
        /// The two base address registers.
        bars: [Option<BarRegister>; 2],
        /// Bus number of the primary side.
        primary: u8,
        /// Bus number of the secondary side.
        secondary: u8,
        /// Highest bus number below the bridge.
        subordinate: u8,
        /// The addresses that it forwards downstream.
        windows: BridgeWindows,
    },
    /// Type 2: a CardBus bridge.
    CardBus,
    /// A type that the specification does not define.
    Other(u8),
}

/// The common header (PCIe r6.0 §7.5.1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Vendor, device and subsystem IDs. A virtual function reads `ffff:ffff` here (PCIe r6.0 §9.3.4.1).
    pub ids: Ids,
    /// Class, subclass and programming interface in bits 23:0.
    pub class: u32,
    /// Revision ID.
    pub revision: u8,
    /// Whether memory decoding is on. If it is off, the function does not respond at its memory BARs.
    pub memory_enabled: bool,
    /// Whether I/O decoding is on.
    pub io_enabled: bool,
    /// Whether the function may send requests.
    pub bus_master: bool,
    /// Whether bit 7 of the header type marks the device as multifunction.
    pub multifunction: bool,
    /// The layout-specific part.
    pub layout: HeaderLayout,
    /// Whether the function has a list of capabilities.
    pub has_capabilities: bool,
}

impl Header {
    /// Reads the header. `None` if it is incomplete.
    pub(super) fn decode(space: &ConfigSpace) -> Option<Self> {
        let kind = space.u8(header::HEADER_TYPE)?;
        let command = space.u16(header::COMMAND)?;
        // The last register of every layout. If it was read, the header is complete.
        space.u32(0x3c)?;
        let layout = match kind & header::HEADER_TYPE_LAYOUT {
            0 => HeaderLayout::Device {
                bars: bar::decode(|index| space.u32(header::BAR0.saturating_add(4 * index))),
            },
            1 => HeaderLayout::Bridge {
                bars: bar::decode(|index| space.u32(header::BAR0.saturating_add(4 * index))),
                primary: space.u8(bridge::PRIMARY_BUS)?,
                secondary: space.u8(bridge::SECONDARY_BUS)?,
                subordinate: space.u8(bridge::SUBORDINATE_BUS)?,
                windows: BridgeWindows::decode(space)?,
            },
            2 => HeaderLayout::CardBus,
            other => HeaderLayout::Other(other),
        };
        let subsystem_at = match layout {
            HeaderLayout::Device { .. } => Some(header::SUBSYSTEM_VENDOR),
            HeaderLayout::CardBus => Some(header::CARDBUS_SUBSYSTEM_VENDOR),
            HeaderLayout::Bridge { .. } | HeaderLayout::Other(_) => None,
        };
        let subsystem = |offset: u16| {
            subsystem_at
                .and_then(|at| space.u16(at.saturating_add(offset)))
                .unwrap_or(0)
        };
        Some(Self {
            ids: Ids {
                vendor: space.u16(header::VENDOR)?,
                device: space.u16(header::DEVICE)?,
                subsystem_vendor: subsystem(0),
                subsystem_device: subsystem(2),
            },
            class: space.u32(header::REVISION)? >> 8,
            revision: space.u8(header::REVISION)?,
            memory_enabled: command & header::COMMAND_MEMORY != 0,
            io_enabled: command & header::COMMAND_IO != 0,
            bus_master: command & header::COMMAND_BUS_MASTER != 0,
            multifunction: kind & header::HEADER_TYPE_MULTIFUNCTION != 0,
            layout,
            has_capabilities: space.u16(header::STATUS)? & header::STATUS_CAPABILITIES != 0,
        })
    }

    /// The number of the layout: bits 6:0 of the header type.
    #[must_use]
    pub fn layout_number(&self) -> u8 {
        match self.layout {
            HeaderLayout::Device { .. } => 0,
            HeaderLayout::Bridge { .. } => 1,
            HeaderLayout::CardBus => 2,
            HeaderLayout::Other(number) => number,
        }
    }
}
