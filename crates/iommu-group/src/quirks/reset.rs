//!
//! Devices on which an advertised kind of reset does not work.
//!
//! From linux 7.2 drivers/pci/quirks.c. Each flag is cited.

use crate::Ids;
use crate::kernel::Rules;

/// Devices that do not recover from a bus reset (`PCI_DEV_FLAGS_NO_BUS_RESET`).
pub(crate) fn no_bus_reset(ids: Ids, rules: Rules) -> bool {
    match ids.vendor {
        0x10de => matches!(ids.device, 0x22ce | 0x22d0) || ids.device & 0xffc0 == 0x2340,
        0x168c => matches!(
            ids.device,
            0x0030 | 0x0032 | 0x0033 | 0x0034 | 0x003c | 0x003e
        ),
        0x17cb => rules >= Rules::V7_2 && matches!(ids.device, 0x0308 | 0x1103 | 0x1107),
        0x177d => ids.device == 0xa100,
        0x104c => ids.device == 0xb005,
        0x1b21 => ids.device == 0x1164,
        _ => false,
    }
}

/// Devices on which a function level reset is harmful (`PCI_DEV_FLAGS_NO_FLR_RESET`).
pub(crate) fn no_flr(ids: Ids, revision: u8, rules: Rules) -> bool {
    match ids.vendor {
        0x1022 => {
            matches!(ids.device, 0x1487 | 0x148c | 0x149c | 0x7901)
                || (rules >= Rules::V7_2 && matches!(ids.device, 0x1502 | 0x17f0))
        }
        0x8086 => matches!(ids.device, 0x1502 | 0x1503),
        0x14c3 => ids.device == 0x0616 || (rules >= Rules::V7_2 && ids.device == 0x7925),
        0xd063 => ids.device == 0x1000 && revision == 1,
        _ => false,
    }
}

/// Devices that advertise a reset by power state transition but are not reset by it (`PCI_DEV_FLAGS_NO_PM_RESET`).
/// Applies only below a bridge.
pub(crate) fn no_pm_reset(ids: Ids, class: u32, on_root_bus: bool) -> bool {
    let listed = match ids.vendor {
        0x1002 => class >> 8 == 0x0300,
        0x15b3 => matches!(ids.device, 0xcb84 | 0xcf6c | 0xcf70 | 0xcf80),
        _ => false,
    };
    listed && !on_root_bus
}
