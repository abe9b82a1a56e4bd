//! Offsets and bits of configuration space, by the names of the specifications.
//!
//! Sections are those of the PCI Express Base Specification r6.0; the same registers are in
//! linux 7.2 include/uapi/linux/pci_regs.h.

/// Bytes of the header, which every reader may see (§7.5.1).
pub(crate) const HEADER_BYTES: usize = 64;
/// Bytes of the configuration space of conventional PCI; extended capabilities start here (§7.2.1).
pub(crate) const LEGACY_BYTES: u16 = 256;
/// Bytes of the configuration space of PCI Express (§7.2.1).
pub(crate) const EXTENDED_BYTES: u16 = 4096;

/// The common header (§7.5.1.1).
pub(crate) mod header {
    pub(crate) const VENDOR: u16 = 0x00;
    pub(crate) const DEVICE: u16 = 0x02;
    pub(crate) const COMMAND: u16 = 0x04;
    pub(crate) const COMMAND_IO: u16 = 1 << 0;
    pub(crate) const COMMAND_MEMORY: u16 = 1 << 1;
    pub(crate) const COMMAND_BUS_MASTER: u16 = 1 << 2;
    pub(crate) const STATUS: u16 = 0x06;
    pub(crate) const STATUS_CAPABILITIES: u16 = 1 << 4;
    pub(crate) const REVISION: u16 = 0x08;
    pub(crate) const HEADER_TYPE: u16 = 0x0e;
    pub(crate) const HEADER_TYPE_LAYOUT: u8 = 0x7f;
    pub(crate) const LAYOUT_CARDBUS: u8 = 2;
    pub(crate) const HEADER_TYPE_MULTIFUNCTION: u8 = 0x80;
    pub(crate) const BAR0: u16 = 0x10;
    /// Type 0 (§7.5.1.2).
    pub(crate) const SUBSYSTEM_VENDOR: u16 = 0x2c;
    pub(crate) const CAPABILITIES: u16 = 0x34;
    /// CardBus bridges have theirs elsewhere (PC Card Standard, PCI to CardBus bridge).
    pub(crate) const CARDBUS_CAPABILITIES: u16 = 0x14;
    pub(crate) const CARDBUS_SUBSYSTEM_VENDOR: u16 = 0x40;
}

/// The header of a bridge (§7.5.1.3).
pub(crate) mod bridge {
    pub(crate) const PRIMARY_BUS: u16 = 0x18;
    pub(crate) const SECONDARY_BUS: u16 = 0x19;
    pub(crate) const SUBORDINATE_BUS: u16 = 0x1a;
    pub(crate) const IO_BASE: u16 = 0x1c;
    pub(crate) const IO_LIMIT: u16 = 0x1d;
    pub(crate) const IO_BASE_UPPER: u16 = 0x30;
    pub(crate) const IO_LIMIT_UPPER: u16 = 0x32;
    pub(crate) const MEMORY_BASE: u16 = 0x20;
    pub(crate) const MEMORY_LIMIT: u16 = 0x22;
    pub(crate) const PREFETCH_BASE: u16 = 0x24;
    pub(crate) const PREFETCH_LIMIT: u16 = 0x26;
    pub(crate) const PREFETCH_BASE_UPPER: u16 = 0x28;
    pub(crate) const PREFETCH_LIMIT_UPPER: u16 = 0x2c;
}

/// Base address registers (§7.5.1.2.1).
pub(crate) mod bar {
    pub(crate) const IO: u32 = 1 << 0;
    pub(crate) const IO_ADDRESS: u32 = !0x3;
    pub(crate) const MEMORY_TYPE: u32 = 0x6;
    pub(crate) const MEMORY_TYPE_64: u32 = 0x4;
    pub(crate) const PREFETCHABLE: u32 = 1 << 3;
    pub(crate) const MEMORY_ADDRESS: u32 = !0xf;
}

/// The list of capabilities (§7.5.1.1.11), with the ids of those that matter here.
pub(crate) mod cap {
    pub(crate) const POWER_MANAGEMENT: u8 = 0x01;
    pub(crate) const MSI: u8 = 0x05;
    pub(crate) const EXPRESS: u8 = 0x10;
    pub(crate) const MSI_X: u8 = 0x11;
    pub(crate) const ADVANCED_FEATURES: u8 = 0x13;
    /// A list cannot be longer: 192 bytes of 4 each (linux 7.2 drivers/pci/pci.h: `PCI_FIND_CAP_TTL`).
    pub(crate) const MOST: usize = 48;
}

/// The list of extended capabilities (§7.6.3), with the ids of those that matter here.
pub(crate) mod ext {
    pub(crate) const ACS: u16 = 0x000d;
    pub(crate) const ARI: u16 = 0x000e;
    pub(crate) const ATS: u16 = 0x000f;
    pub(crate) const SRIOV: u16 = 0x0010;
    pub(crate) const VENDOR_DESIGNATED: u16 = 0x0023;
    /// As many as Linux follows (linux 7.2 drivers/pci/pci.h: `PCI_FIND_NEXT_EXT_CAP()`).
    pub(crate) const MOST: usize = (4096 - 256) / 8;
}

/// PCI Power Management (§7.5.2).
pub(crate) mod pm {
    pub(crate) const CONTROL: u16 = 0x04;
    pub(crate) const CONTROL_STATE: u16 = 0x0003;
    pub(crate) const CONTROL_NO_SOFT_RESET: u16 = 1 << 3;
}

/// MSI (§7.7.1).
pub(crate) mod msi {
    pub(crate) const CONTROL: u16 = 0x02;
    pub(crate) const CONTROL_ENABLE: u16 = 1 << 0;
    pub(crate) const CONTROL_64BIT: u16 = 1 << 7;
    pub(crate) const CONTROL_MASKING: u16 = 1 << 8;
}

/// MSI-X (§7.7.2).
pub(crate) mod msix {
    pub(crate) const CONTROL: u16 = 0x02;
    pub(crate) const CONTROL_TABLE_SIZE: u16 = 0x07ff;
    pub(crate) const CONTROL_ENABLE: u16 = 1 << 15;
    pub(crate) const TABLE: u16 = 0x04;
    pub(crate) const PENDING: u16 = 0x08;
    pub(crate) const BAR_INDICATOR: u32 = 0x7;
}

/// Conventional PCI Advanced Features (PCI-SIG ECN of 2006, "Advanced Capabilities for Conventional PCI").
pub(crate) mod af {
    pub(crate) const CAPABILITIES: u16 = 0x03;
    pub(crate) const TRANSACTIONS_PENDING: u8 = 1 << 0;
    pub(crate) const FLR: u8 = 1 << 1;
}

/// The PCI Express capability (§7.5.3).
pub(crate) mod express {
    pub(crate) const FLAGS: u16 = 0x02;
    pub(crate) const FLAGS_SLOT: u16 = 1 << 8;
    pub(crate) const DEVICE_CAPABILITIES: u16 = 0x04;
    pub(crate) const DEVICE_CAPABILITIES_FLR: u32 = 1 << 28;
    pub(crate) const LINK_CAPABILITIES: u16 = 0x0c;
    pub(crate) const LINK_STATUS: u16 = 0x12;
    pub(crate) const LINK_STATUS_ACTIVE: u16 = 1 << 13;
    pub(crate) const SLOT_CAPABILITIES: u16 = 0x14;
    pub(crate) const SLOT_CAPABILITIES_HOTPLUG: u32 = 1 << 6;
    pub(crate) const DEVICE_CAPABILITIES_2: u16 = 0x24;
    pub(crate) const DEVICE_CAPABILITIES_2_ARI: u32 = 1 << 5;
    pub(crate) const DEVICE_CONTROL_2: u16 = 0x28;
    pub(crate) const DEVICE_CONTROL_2_ARI: u16 = 1 << 5;
}

/// Access Control Services (§6.12 and §7.7.11).
pub(crate) mod acs {
    pub(crate) const CAPABILITY: u16 = 0x04;
    pub(crate) const CONTROL: u16 = 0x06;
    pub(crate) const EGRESS_VECTOR: u16 = 0x08;
    /// Where Intel's 100 and 200 series root ports have the control register, which is a doubleword there
    /// (linux 7.2 drivers/pci/quirks.c: `INTEL_SPT_ACS_CTRL`).
    pub(crate) const CONTROL_OF_DWORD_LAYOUT: u16 = 0x08;
}

/// Address Translation Services (§10.5.1).
pub(crate) mod ats {
    pub(crate) const CAPABILITY: u16 = 0x04;
    pub(crate) const CAPABILITY_QUEUE_DEPTH: u16 = 0x1f;
    pub(crate) const CAPABILITY_PAGE_ALIGNED: u16 = 1 << 5;
    pub(crate) const CONTROL: u16 = 0x06;
    pub(crate) const CONTROL_STU: u16 = 0x1f;
    pub(crate) const CONTROL_ENABLE: u16 = 1 << 15;
}

/// Alternative Routing-ID Interpretation (§6.13).
pub(crate) mod ari {
    pub(crate) const CAPABILITY: u16 = 0x04;
    pub(crate) const CAPABILITY_ACS_GROUPS: u16 = 1 << 1;
    pub(crate) const CONTROL: u16 = 0x06;
    pub(crate) const CONTROL_ACS_GROUPS: u16 = 1 << 1;
}

/// Single Root I/O Virtualization (§9.3.3).
pub(crate) mod sriov {
    pub(crate) const CONTROL: u16 = 0x08;
    pub(crate) const CONTROL_VF_ENABLE: u16 = 1 << 0;
    pub(crate) const CONTROL_ARI_HIERARCHY: u16 = 1 << 4;
    pub(crate) const TOTAL_VFS: u16 = 0x0e;
    pub(crate) const NUM_VFS: u16 = 0x10;
    pub(crate) const VF_OFFSET: u16 = 0x14;
    pub(crate) const VF_STRIDE: u16 = 0x16;
    pub(crate) const VF_DEVICE: u16 = 0x1a;
    pub(crate) const VF_BAR0: u16 = 0x24;
}

/// Designated vendor-specific capabilities (§7.9.6), and the one of CXL that matters for resets
/// (CXL r3.1 §8.1.5, CXL Extensions DVSEC for Ports).
pub(crate) mod dvsec {
    pub(crate) const VENDOR: u16 = 0x04;
    pub(crate) const ID: u16 = 0x08;
    pub(crate) const CXL_VENDOR: u16 = 0x1e98;
    pub(crate) const CXL_PORT: u16 = 3;
    pub(crate) const CXL_PORT_CONTROL: u16 = 0x0c;
    pub(crate) const CXL_PORT_CONTROL_UNMASK_SBR: u16 = 1 << 0;
}
