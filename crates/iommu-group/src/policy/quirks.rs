//! Built-in rules for devices that are not ordinary peers.

use super::rule::{Identity, Role};

/// A built-in rule.
pub(super) struct Quirk {
    vendor: u16,
    /// `None` matches every device of the vendor.
    device: Option<u16>,
    /// Base class (PCI Code and ID Assignment r1.11 §1).
    base_class: Option<u8>,
    /// Whether the rule matches only devices that are part of the root complex, without a link of their own.
    integrated: bool,
    pub(super) role: Role,
    pub(super) why: &'static str,
}

const DISPLAY: u8 = 0x03;
const COHERENT: &str =
    "its large BARs are memory behind the processor's coherent link, not where PCIe routes lead";

/// A GPU whose memory is part of the processor's physical memory and has a link of its own. The driver presents the
/// memory as BARs (linux 7.2 drivers/vfio/pci/nvgrace-gpu/main.c; the IDs are from its `nvgrace_gpu_vfio_pci_table`).
const fn coherent(device: u16) -> Quirk {
    Quirk {
        vendor: 0x10de,
        device: Some(device),
        base_class: None,
        integrated: false,
        role: Role::InitiatorOnly,
        why: COHERENT,
    }
}

pub(super) const QUIRKS: [Quirk; 6] = [
    // GH200 120GB.
    coherent(0x2342),
    // GH200 480GB.
    coherent(0x2345),
    // GH200.
    coherent(0x2348),
    // GB200.
    coherent(0x2941),
    // GB300.
    coherent(0x31c2),
    // The apertures of these devices are windows into memory that firmware has reserved for graphics.
    Quirk {
        vendor: 0x8086,
        device: None,
        base_class: Some(DISPLAY),
        integrated: true,
        role: Role::Never,
        why: "its BAR is a window into system memory",
    },
];

impl Quirk {
    pub(super) fn fits(&self, identity: &Identity) -> bool {
        self.vendor == identity.vendor
            && self.device.is_none_or(|device| device == identity.device)
            && self
                .base_class
                .is_none_or(|class| u32::from(class) == identity.class >> 16)
            && (!self.integrated || identity.integrated)
    }
}
