//! Short descriptions of functions and their settings, for table columns.

use iommu_group::{Acs, AcsBits, Function, HeaderLayout, PortType, Topology, Unreadable};

use crate::show::{Line, Tone};

/// What a function is: `root port`, `switch down`, `NVMe 1b36:0010`.
pub(crate) fn what(function: &Function) -> String {
    match function.port_type() {
        PortType::RootPort => "root port".to_owned(),
        PortType::SwitchUpstream => "switch up".to_owned(),
        PortType::SwitchDownstream => "switch down".to_owned(),
        PortType::PcieToPciBridge => "PCIe-PCI bridge".to_owned(),
        PortType::PciToPcieBridge => "PCI-PCIe bridge".to_owned(),
        PortType::RcEventCollector => "event collector".to_owned(),
        // An unprivileged reader cannot see the port type, only that the function is a bridge.
        PortType::Unknown if function.is_bridge() => "port or bridge".to_owned(),
        _ => {
            let kind = if function.is_virtual() {
                "VF"
            } else if function.config().hidden == Some(Unreadable::Unreachable) {
                "unreachable"
            } else {
                class_word(function.class())
            };
            format!("{kind} {}", function.ids())
        }
    }
}

/// The word for a class of devices (PCI Code and ID Assignment Specification r1.16).
fn class_word(class: u32) -> &'static str {
    subclass_word(class >> 8).unwrap_or(match class >> 16 {
        0x01 => "storage",
        0x02 => "network",
        0x05 => "memory",
        0x06 => "bridge",
        0x08 | 0x11 => "system",
        0x0c => "serial bus",
        0x10 => "crypto",
        0x12 => "accelerator",
        _ => "device",
    })
}

fn subclass_word(subclass: u32) -> Option<&'static str> {
    Some(match subclass {
        0x0101 | 0x0106 => "SATA",
        0x0104 => "RAID",
        0x0107 => "SAS",
        0x0108 => "NVMe",
        0x0200 | 0x0280 => "NIC",
        0x0207 => "InfiniBand",
        0x0300 | 0x0302 | 0x0380 => "GPU",
        0x0403 => "audio",
        0x0600 => "host bridge",
        0x0601 => "ISA bridge",
        0x0604 => "PCI bridge",
        0x0806 => "IOMMU",
        0x0c03 => "USB",
        0x0c05 => "SMBus",
        0x0b40 => "crypto",
        _ => return None,
    })
}

/// The ACS setting of a port or of another function with ACS; empty for functions that need none.
pub(crate) fn acs(function: &Function) -> Line {
    match function.acs() {
        Acs::Unknown(_) if function.is_bridge() => Line::new().toned(Tone::Warn, "ACS ?"),
        Acs::Absent if function.port_type().is_downstream() => {
            Line::new().toned(Tone::Bad, "no ACS")
        }
        Acs::Unknown(_) | Acs::Absent => Line::new(),
        Acs::Known(registers) => {
            let missing = AcsBits::REQUIRED & registers.capability & !registers.control;
            if missing.is_empty() {
                return Line::new().toned(Tone::Good, format_args!("ACS {}", registers.control));
            }
            let on = if registers.control.is_empty() {
                Line::new().plain("ACS")
            } else {
                Line::new().plain(format_args!("ACS {}", registers.control))
            };
            on.plain(" ")
                .toned(Tone::Bad, format_args!("(off: {missing})"))
        }
    }
}

/// Short form of the ACS setting: whether the port isolates the devices below it.
pub(crate) fn acs_in_short(function: &Function) -> Option<(Tone, String)> {
    Some(match function.acs() {
        Acs::Unknown(_) if function.is_bridge() => (Tone::Warn, "ACS unknown".to_owned()),
        Acs::Absent if function.port_type().is_downstream() => (Tone::Bad, "no ACS".to_owned()),
        Acs::Unknown(_) | Acs::Absent => return None,
        Acs::Known(registers) => {
            let missing = AcsBits::REQUIRED & registers.capability & !registers.control;
            if missing.is_empty() {
                (Tone::Good, "ACS on".to_owned())
            } else if missing.contains(AcsBits::RR) {
                (Tone::Bad, "redirect off".to_owned())
            } else {
                (Tone::Warn, format!("{missing} off"))
            }
        }
    })
}

/// The link above a function: `gen4 x16`, or `gen1/4 x16` if both ends support more.
pub(crate) fn link(topology: &Topology, function: &Function) -> Line {
    let of = |f: &Function| f.config().express.and_then(|e| e.link);
    let port = topology
        .upstream(function.sbdf())
        .filter(|p| p.port_type().is_downstream());
    // A link is shown at its lower end. There are none inside a switch and on a root bus.
    let (Some(own), Some(port)) = (of(function), port) else {
        return Line::new();
    };
    if function.is_virtual() || own.generation == 0 || own.lanes == 0 {
        return Line::new();
    }
    let most = of(port);
    let most_generation = most.map_or(own.max_generation, |m| {
        m.max_generation.min(own.max_generation)
    });
    let most_lanes = most.map_or(own.max_lanes, |m| m.max_lanes.min(own.max_lanes));
    let of_most = |now: u8, most: u8| {
        if now < most {
            format!("{now}/{most}")
        } else {
            now.to_string()
        }
    };
    let text = format!(
        "gen{} x{}",
        of_most(own.generation, most_generation),
        of_most(own.lanes, most_lanes)
    );
    let slow = own.generation < most_generation || own.lanes < most_lanes;
    Line::new().toned(if slow { Tone::Warn } else { Tone::Plain }, text)
}

/// Properties of an endpoint that matter for P2P, apart from its driver.
pub(crate) fn remarks(topology: &Topology, function: &Function) -> Vec<String> {
    let mut remarks = Vec::new();
    let memory = topology
        .bars(function)
        .into_iter()
        .filter(|bar| bar.is_memory())
        .max_by_key(|bar| bar.size_bytes);
    if let Some(bar) = memory.filter(|bar| bar.size_bytes >= 1 << 20) {
        remarks.push(format!("BAR{} {}", bar.index, size(bar.size_bytes)));
    }
    if function.config().ats.is_some_and(|ats| ats.enabled) {
        remarks.push("ATS".to_owned());
    }
    let decodes = function
        .config()
        .header
        .as_ref()
        .is_none_or(|h| h.memory_enabled);
    if !decodes && matches!(layout(function), Some(HeaderLayout::Device { .. })) && memory.is_some()
    {
        remarks.push("memory off".to_owned());
    }
    remarks
}

fn layout(function: &Function) -> Option<&HeaderLayout> {
    function.config().header.as_ref().map(|h| &h.layout)
}

/// A size in the largest unit that divides it: `16M`, `128G`, `4K`.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [(u32, &str); 4] = [(40, "T"), (30, "G"), (20, "M"), (10, "K")];
    UNITS
        .iter()
        .find(|(shift, _)| bytes >= 1 << shift && bytes.trailing_zeros() >= *shift)
        .map_or_else(
            || bytes.to_string(),
            |(shift, unit)| format!("{}{unit}", bytes >> shift),
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (bytes, text) in [
            (0, "0"),
            (4096, "4K"),
            (16 << 20, "16M"),
            (24 << 20, "24M"),
            (128 << 30, "128G"),
            (1 << 40, "1T"),
            ((1 << 30) + 4096, "1048580K"),
            (1000, "1000"),
            (1536 << 20, "1536M"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn classes() {
        for (class, word) in [
            (0x01_0802, "NVMe"),
            (0x02_0700, "InfiniBand"),
            (0x03_0200, "GPU"),
            (0x06_8000, "bridge"),
            (0x0c_8000, "serial bus"),
            (0xff_0000, "device"),
            (0x40_0000, "device"),
        ] {
            assert_eq!(class_word(class), word);
        }
    }
}
