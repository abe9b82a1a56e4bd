//! Root complexes that are known to route requests between devices.

use crate::kernel::{Kernel, Rules};
use crate::topology::FunctionId;
use crate::{Cpu, PortType, Topology};

/// An entry of linux 7.3 drivers/pci/p2pdma.c: `pci_p2pdma_whitelist[]`.
struct Known {
    vendor: u16,
    /// `None` matches all devices of the vendor.
    device: Option<u16>,
    /// Whether the entry holds only between devices of one root complex.
    same_only: bool,
    /// The first rules that have the entry.
    since: Rules,
}

const fn known(vendor: u16, device: u16, since: Rules) -> Known {
    Known {
        vendor,
        device: Some(device),
        same_only: false,
        since,
    }
}

const fn same_only(device: u16) -> Known {
    Known {
        vendor: 0x8086,
        device: Some(device),
        same_only: true,
        since: Rules::V6_12,
    }
}

static TABLE: [Known; 25] = [
    // Xeon E5, Xeon E5 v3 and E7 v3.
    same_only(0x3c00),
    same_only(0x3c01),
    same_only(0x2f00),
    same_only(0x2f01),
    // Skylake-E and later.
    known(0x8086, 0x2030, Rules::V6_12),
    known(0x8086, 0x2031, Rules::V6_12),
    known(0x8086, 0x2032, Rules::V6_12),
    known(0x8086, 0x2033, Rules::V6_12),
    known(0x8086, 0x2020, Rules::V6_12),
    known(0x8086, 0x09a2, Rules::V6_12),
    // Accelerators that are the first function of their root bus on later Xeons.
    known(0x8086, 0x0b25, Rules::V7_2),
    known(0x8086, 0x0cfe, Rules::V7_2),
    known(0x8086, 0x11fb, Rules::V7_2),
    known(0x8086, 0x1212, Rules::V7_2),
    known(0x8086, 0x1216, Rules::V7_2),
    known(0x8086, 0x4940, Rules::V7_2),
    known(0x8086, 0x4942, Rules::V7_2),
    known(0x8086, 0x4944, Rules::V7_2),
    known(0x8086, 0x4946, Rules::V7_2),
    known(0x8086, 0x4948, Rules::V7_2),
    // Google.
    Known {
        vendor: 0x1ae0,
        device: None,
        same_only: false,
        since: Rules::V7_2,
    },
    // NVIDIA.
    known(0x10de, 0x2f95, Rules::V7_3),
    known(0x10de, 0x2f96, Rules::V7_3),
    known(0x10de, 0x2f97, Rules::V7_3),
    known(0x10de, 0x2f98, Rules::V7_3),
];

/// Whether all root complexes of this kind of CPU route between devices.
pub(super) fn cpu_routes(topology: &Topology) -> bool {
    let cpu = topology.host().cpu.as_ref();
    cpu.is_some_and(Cpu::supports_p2pdma)
}

/// Whether the root complexes above two functions are on the kernel's list
/// (linux 7.2 drivers/pci/p2pdma.c: `host_bridge_whitelist()`).
pub(super) fn listed(topology: &Topology, kernel: &Kernel, a: FunctionId, b: FunctionId) -> bool {
    let (a, b) = (topology.tree().root_of(a), topology.tree().root_of(b));
    if a == b {
        return listed_root(topology, kernel, a, true);
    }
    listed_root(topology, kernel, a, false) && listed_root(topology, kernel, b, false)
}

/// Whether a root complex is on the list. It is identified by the first function of its root bus, if that is function
/// 00.0 or a root port.
fn listed_root(topology: &Topology, kernel: &Kernel, root: usize, same: bool) -> bool {
    let first = topology
        .tree()
        .on_root_number(root)
        .iter()
        .filter_map(|id| topology.function(*id))
        .find(|function| !function.is_virtual());
    let Some(first) = first else { return false };
    if first.sbdf().devfn() != 0 && first.port_type() != PortType::RootPort {
        return false;
    }
    let ids = first.ids();
    TABLE
        .iter()
        .find(|known| {
            known.since <= kernel.rules
                && known.vendor == ids.vendor
                && known.device.is_none_or(|device| device == ids.device)
        })
        .is_some_and(|known| same || !known.same_only)
}
