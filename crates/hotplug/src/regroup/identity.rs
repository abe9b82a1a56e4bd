//! Identity of the device behind a function.

use std::fs;
use std::path::Path;

use iommu_group::{Function, Ids};
use serde::{Deserialize, Serialize};

/// Offsets in configuration space (PCIe r6.0 §7.5.1).
const CLASS: usize = 0x08;
const HEADER_TYPE: usize = 0x0e;
const SUBSYSTEM: usize = 0x2c;

/// Number of bytes read from configuration space.
pub(super) const HEADER: usize = 0x40;

/// IDs of a device. A function at a recorded path is the recorded one only if its IDs are equal too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// Vendor and device ID; for endpoints also the subsystem IDs.
    pub ids: Ids,
    /// Class, subclass and programming interface in bits 23:0.
    pub class: u32,
}

impl Identity {
    pub(super) fn of(function: &Function) -> Self {
        let ids = function.ids();
        Self {
            ids: if function.is_bridge() {
                Ids {
                    subsystem_vendor: 0,
                    subsystem_device: 0,
                    ..ids
                }
            } else {
                ids
            },
            class: function.class(),
        }
    }

    /// The identity from the configuration header of a function with sysfs directory `dir`. If the device does not
    /// answer, the kernel's IDs are used.
    pub(super) fn read(header: &[u8; HEADER], dir: &Path) -> Option<Self> {
        let word = |at: usize| {
            let bytes = header.get(at..at.checked_add(2)?)?;
            Some(u16::from_le_bytes(bytes.try_into().ok()?))
        };
        if word(0)? == 0xffff {
            return Self::known_to_kernel(dir);
        }
        let class = u32::from(word(CLASS + 2)?) << 8 | u32::from(word(CLASS)? >> 8);
        let is_device = header.get(HEADER_TYPE)? & 0x7f == 0;
        let subsystem = |at| if is_device { word(at) } else { Some(0) };
        Some(Self {
            ids: Ids {
                vendor: word(0)?,
                device: word(2)?,
                subsystem_vendor: subsystem(SUBSYSTEM)?,
                subsystem_device: subsystem(SUBSYSTEM + 2)?,
            },
            class,
        })
    }

    fn known_to_kernel(dir: &Path) -> Option<Self> {
        let number = |name: &str| {
            let text = fs::read_to_string(dir.join(name)).ok()?;
            u32::from_str_radix(text.trim().trim_start_matches("0x"), 16).ok()
        };
        let word = |name: &str| u16::try_from(number(name)?).ok();
        Some(Self {
            ids: Ids {
                vendor: word("vendor")?,
                device: word("device")?,
                subsystem_vendor: word("subsystem_vendor").unwrap_or(0),
                subsystem_device: word("subsystem_device").unwrap_or(0),
            },
            class: number("class")?,
        })
    }
}
