//!
//! Devices whose isolation differs from their ACS capability.
//!
//! The tables correspond to `pci_dev_acs_enabled[]` and `pci_dev_acs_ops[]` of linux 7.2 drivers/pci/quirks.c. They are
//! the same in 6.12 and 7.3.

use super::Devices;
use crate::Ids;
use crate::config::PortType;

/// Rule of the table for a matching device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AcsRule {
    /// The functions of AMD southbridges do not reach each other. Applies to multifunction devices on a root bus if
    /// firmware describes an AMD IOMMU.
    AmdSouthbridge,
    /// Isolated, for the reason given.
    Isolated(&'static str),
    /// Not isolated, even if the capability indicates isolation.
    NotIsolated(&'static str),
    /// An old Intel root port. It is isolated after the kernel has set up its device-specific registers.
    IntelPch,
}

/// A table entry: the devices of a vendor and their rule.
struct Entry {
    vendor: u16,
    devices: Devices,
    rule: fn(device: u16, port_type: PortType) -> Option<AcsRule>,
}

impl Entry {
    const fn listed(
        vendor: u16,
        devices: &'static [u16],
        rule: fn(u16, PortType) -> Option<AcsRule>,
    ) -> Self {
        Self {
            vendor,
            devices: Devices::Listed(devices),
            rule,
        }
    }

    const fn any(vendor: u16, rule: fn(u16, PortType) -> Option<AcsRule>) -> Self {
        Self {
            vendor,
            devices: Devices::Any,
            rule,
        }
    }
}

const INTEL: u16 = 0x8086;
const CAVIUM: u16 = 0x177d;
const BROADCOM: u16 = 0x14e4;
const ZHAOXIN: u16 = 0x1d17;

/// The entries in the order of Linux. The first entry that returns a rule applies.
static TABLE: [Entry; 22] = [
    Entry::listed(
        0x1002,
        &[0x4383, 0x4384, 0x4385, 0x4399, 0x439c, 0x439d],
        amd_southbridge,
    ),
    Entry::listed(0x1022, &[0x7809, 0x780f], amd_southbridge),
    Entry::listed(0x1924, &[0x0903, 0x0923, 0x0a03], no_internal_p2p),
    Entry::listed(INTEL, INTEL_NICS, no_internal_p2p),
    Entry::any(INTEL, intel_rc_endpoint),
    Entry::listed(
        0x17cb,
        &[0x0111, 0x0115, 0x0120, 0x0400, 0x0401],
        root_ports_apart,
    ),
    Entry::listed(0x1dbf, &[0x0401], root_ports_apart),
    Entry::any(INTEL, intel_pch),
    // At this place Linux checks Intel's doubleword registers. Here they are handled when the capability is decoded.
    Entry::listed(0x19a2, &[0x0710], no_internal_p2p),
    Entry::listed(0x10df, &[0x0720], no_internal_p2p),
    Entry::any(CAVIUM, cavium_root_port),
    Entry::listed(CAVIUM, &[0xa026, 0xa059, 0xa060], no_internal_p2p),
    Entry::listed(0x10e8, &[0xe004], root_ports_apart),
    Entry::listed(
        0x1def,
        &[
            0xe005, 0xe006, 0xe007, 0xe008, 0xe009, 0xe00a, 0xe00b, 0xe00c,
        ],
        root_ports_apart,
    ),
    Entry::listed(
        BROADCOM,
        &[
            0x16d7, 0x1750, 0x1751, 0x1752, 0x1760, 0x1761, 0x1762, 0x1763,
        ],
        no_internal_p2p,
    ),
    Entry::listed(BROADCOM, &[0xd714], root_ports_apart),
    Entry::listed(
        0x0014,
        &[
            0x3c09, 0x3c19, 0x3c29, 0x7a09, 0x7a19, 0x7a29, 0x7a39, 0x7a49, 0x7a59, 0x7a69,
        ],
        root_ports_apart,
    ),
    Entry::listed(0x1c36, &[0x0031], annapurna_root_port),
    Entry::listed(ZHAOXIN, &[0x3038, 0x3104, 0x9083], no_internal_p2p),
    Entry::listed(
        0x1957,
        &[
            0x8d80, 0x8d81, 0x8d82, 0x8d83, 0x8d88, 0x8d89, 0x8d8a, 0x8d8b, 0x8d90, 0x8d91, 0x8d92,
            0x8d93, 0x8d98, 0x8d99, 0x8d9a, 0x8d9b, 0x8da0, 0x8da1, 0x8da8, 0x8da9, 0x8db0, 0x8db1,
            0x8db8, 0x8db9,
        ],
        root_ports_apart,
    ),
    Entry::any(ZHAOXIN, zhaoxin_port),
    Entry::any(0x8088, wangxun),
];

/// Network controllers (82571 to X550, I350, I219) whose functions do not reach each other.
const INTEL_NICS: &[u16] = &[
    0x105e, 0x105f, 0x1060, 0x10a7, 0x10a9, 0x10c6, 0x10c9, 0x10d6, 0x10d9, 0x10db, 0x10dd, 0x10e1,
    0x10e6, 0x10e7, 0x10e8, 0x10f1, 0x10f7, 0x10f8, 0x10f9, 0x10fa, 0x10fb, 0x10fc, 0x1507, 0x1509,
    0x150a, 0x150d, 0x150e, 0x150f, 0x1510, 0x1511, 0x1514, 0x1516, 0x1518, 0x151c, 0x1521, 0x1522,
    0x1523, 0x1524, 0x1526, 0x1527, 0x1529, 0x152a, 0x154d, 0x154f, 0x1551, 0x1558, 0x15b7, 0x15b8,
];

/// Root ports of Intel chipsets from Ibex Peak to Wellsburg (linux: `pci_quirk_intel_pch_acs_ids[]`).
const INTEL_PCH_ROOT_PORTS: Devices = Devices::Ranges(&[
    (0x3b42, 0x3b51),
    (0x1c10, 0x1c1f),
    (0x1e10, 0x1e1f),
    (0x8c10, 0x8c1f),
    (0x9c10, 0x9c1b),
    (0x9c90, 0x9c9b),
    (0x8d10, 0x8d1e),
]);
const INTEL_PCH_ROOT_PORTS_EVEN: Devices = Devices::Listed(&[
    0x1d10, 0x1d12, 0x1d14, 0x1d16, 0x1d18, 0x1d1a, 0x1d1c, 0x1d1e, 0x8c90, 0x8c92, 0x8c94, 0x8c96,
    0x8c98, 0x8c9a, 0x8c9c, 0x8c9e,
]);

/// Root ports of Intel's 100 and 200 series and of the 7th and 8th mobile generation
/// (linux: `pci_quirk_intel_spt_pch_acs_match()`).
const INTEL_SPT_ROOT_PORTS: Devices = Devices::Ranges(&[
    (0xa110, 0xa11f),
    (0xa167, 0xa16a),
    (0xa290, 0xa29f),
    (0xa2e7, 0xa2ee),
    (0x9d10, 0x9d1b),
]);

fn amd_southbridge(_: u16, _: PortType) -> Option<AcsRule> {
    Some(AcsRule::AmdSouthbridge)
}

fn no_internal_p2p(_: u16, _: PortType) -> Option<AcsRule> {
    Some(AcsRule::Isolated(
        "its vendor says that its functions do not reach each other",
    ))
}

fn root_ports_apart(_: u16, _: PortType) -> Option<AcsRule> {
    Some(AcsRule::Isolated(
        "its vendor says that it passes nothing to other ports",
    ))
}

fn intel_rc_endpoint(_: u16, port_type: PortType) -> Option<AcsRule> {
    (port_type == PortType::RcEndpoint).then_some(AcsRule::Isolated(
        "VT-d lets endpoints in the root complex reach peers only with translated addresses",
    ))
}

fn intel_pch(device: u16, port_type: PortType) -> Option<AcsRule> {
    let listed =
        INTEL_PCH_ROOT_PORTS.contains(device) || INTEL_PCH_ROOT_PORTS_EVEN.contains(device);
    (port_type == PortType::RootPort && listed).then_some(AcsRule::IntelPch)
}

fn cavium_root_port(device: u16, port_type: PortType) -> Option<AcsRule> {
    let listed = matches!(device, 0xa000..=0xa7ff | 0xaf84 | 0xb884);
    if port_type == PortType::RootPort && listed {
        root_ports_apart(device, port_type)
    } else {
        None
    }
}

fn annapurna_root_port(device: u16, port_type: PortType) -> Option<AcsRule> {
    if port_type == PortType::RootPort {
        root_ports_apart(device, port_type)
    } else {
        None
    }
}

fn zhaoxin_port(device: u16, port_type: PortType) -> Option<AcsRule> {
    if !port_type.is_downstream() {
        return None;
    }
    match device {
        0x0710..=0x071e | 0x0721 | 0x0723..=0x0752 => root_ports_apart(device, port_type),
        _ => Some(AcsRule::NotIsolated("Linux trusts no other Zhaoxin port")),
    }
}

fn wangxun(device: u16, port_type: PortType) -> Option<AcsRule> {
    match device {
        0x0100..=0x010f | 0x1001 | 0x2001 | 0x5010 | 0x5025 | 0x5040 | 0x5110 | 0x5125 | 0x5140 => {
            no_internal_p2p(device, port_type)
        }
        _ => Some(AcsRule::NotIsolated("Linux trusts no other Wangxun device")),
    }
}

/// The rule of the table for a device. `None` if no entry applies.
pub(crate) fn rule(ids: Ids, port_type: PortType) -> Option<AcsRule> {
    TABLE
        .iter()
        .filter(|entry| entry.vendor == ids.vendor && entry.devices.contains(ids.device))
        .find_map(|entry| (entry.rule)(ids.device, port_type))
}

/// Intel root ports with device-specific ACS setup in Linux.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum IntelPort {
    /// No ACS capability, but device-specific registers with the same effect.
    Pch,
    /// An ACS capability whose registers are doublewords instead of words.
    Spt,
}

/// The kind of device-specific ACS setup that Linux uses for a port, if any.
pub(crate) fn intel_port(ids: Ids, port_type: PortType, has_capability: bool) -> Option<IntelPort> {
    if ids.vendor != INTEL || port_type != PortType::RootPort {
        return None;
    }
    if intel_pch(ids.device, port_type).is_some() {
        return Some(IntelPort::Pch);
    }
    (has_capability && has_dword_registers(ids, port_type)).then_some(IntelPort::Spt)
}

/// Whether the ACS registers of a port are doublewords.
pub(crate) fn has_dword_registers(ids: Ids, port_type: PortType) -> bool {
    ids.vendor == INTEL
        && port_type == PortType::RootPort
        && INTEL_SPT_ROOT_PORTS.contains(ids.device)
}

/// IDT switches whose source validation is broken (linux: `pci_disable_broken_acs_cap()`).
pub(crate) fn has_broken_source_validation(ids: Ids) -> bool {
    ids.vendor == 0x111d && matches!(ids.device, 0x80b5 | 0x8090)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(vendor: u16, device: u16, port_type: PortType) -> Option<bool> {
        let ids = Ids {
            vendor,
            device,
            ..Ids::default()
        };
        rule(ids, port_type).map(|rule| matches!(rule, AcsRule::Isolated(_)))
    }

    #[test]
    fn isolation_by_device() {
        use PortType::{
            Conventional, Endpoint, RcEndpoint, RootPort, SwitchDownstream, SwitchUpstream,
        };
        for (vendor, device, port_type, isolated) in [
            (0x8086, 0x10fb, Endpoint, Some(true)),
            (0x8086, 0x10fb, Conventional, Some(true)),
            (0x8086, 0x10ff, Endpoint, None),
            (0x8086, 0x1234, RcEndpoint, Some(true)),
            (0x8086, 0x1c10, RootPort, Some(false)),
            (0x8086, 0x1c10, Endpoint, None),
            (0x8086, 0x1d11, RootPort, None),
            (0x8086, 0x8d1f, RootPort, None),
            (0x8086, 0xa110, RootPort, None),
            (0x17cb, 0x0400, RootPort, Some(true)),
            (0x177d, 0xa100, RootPort, Some(true)),
            (0x177d, 0xa026, RootPort, Some(true)),
            (0x177d, 0xa026, Endpoint, Some(true)),
            (0x177d, 0xa100, Endpoint, None),
            (0x177d, 0xa800, RootPort, None),
            (0x1c36, 0x0031, RootPort, Some(true)),
            (0x1c36, 0x0031, SwitchUpstream, None),
            (0x1957, 0x8d9b, RootPort, Some(true)),
            (0x1957, 0x8d84, RootPort, None),
            (0x1d17, 0x3038, Conventional, Some(true)),
            (0x1d17, 0x0722, RootPort, Some(false)),
            (0x1d17, 0x0723, SwitchDownstream, Some(true)),
            (0x1d17, 0x0723, SwitchUpstream, None),
            (0x8088, 0x0110, Endpoint, Some(false)),
            (0x8088, 0x010f, Endpoint, Some(true)),
            (0x14e4, 0xd714, RootPort, Some(true)),
            (0x0014, 0x7a69, RootPort, Some(true)),
            (0x1234, 0x10fb, Endpoint, None),
        ] {
            assert_eq!(
                of(vendor, device, port_type),
                isolated,
                "{vendor:04x}:{device:04x} {port_type}"
            );
        }
    }

    #[test]
    fn lists_are_in_order_and_without_doubles() {
        for entry in &TABLE {
            if let Devices::Listed(ids) = entry.devices {
                assert!(ids.is_sorted_by(|a, b| a < b), "{:04x}", entry.vendor);
            }
        }
    }
}
