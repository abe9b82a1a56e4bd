//!
//! Register offsets and bits of configuration space, with the names of the specifications.
//!
//! Offsets in the module of a capability are relative to the start of the capability. Constants without a comment have
//! the meaning that the specification defines for that name.
//!
//! Sections are those of the PCI Express Base Specification r6.0; the same registers are in
//! linux 7.2 include/uapi/linux/pci_regs.h.

/// Size of the header in bytes, visible to every reader (§7.5.1).
pub const HEADER_BYTES: usize = 64;
/// Size of conventional configuration space in bytes. Extended capabilities start here (§7.2.1).
pub const LEGACY_BYTES: u16 = 256;
/// Size of PCI Express configuration space in bytes (§7.2.1).
pub const EXTENDED_BYTES: u16 = 4096;

/// The common header (§7.5.1.1).
pub mod header {
    pub const VENDOR: u16 = 0x00;
    pub const DEVICE: u16 = 0x02;
    pub const COMMAND: u16 = 0x04;
    pub const COMMAND_IO: u16 = 1 << 0;
    pub const COMMAND_MEMORY: u16 = 1 << 1;
    pub const COMMAND_BUS_MASTER: u16 = 1 << 2;
    pub const COMMAND_INTERRUPT_DISABLE: u16 = 1 << 10;
    pub const STATUS: u16 = 0x06;
    pub const STATUS_CAPABILITIES: u16 = 1 << 4;
    pub const REVISION: u16 = 0x08;
    /// Programming interface, subclass, class.
    pub const CLASS: u16 = 0x09;
    pub const BASE_CLASS: u16 = 0x0b;
    pub const BASE_CLASS_DISPLAY: u8 = 0x03;
    pub const CACHE_LINE_SIZE: u16 = 0x0c;
    pub const HEADER_TYPE: u16 = 0x0e;
    pub const HEADER_TYPE_LAYOUT: u8 = 0x7f;
    pub const LAYOUT_BRIDGE: u8 = 1;
    pub const LAYOUT_CARDBUS: u8 = 2;
    pub const HEADER_TYPE_MULTIFUNCTION: u8 = 0x80;
    pub const BAR0: u16 = 0x10;
    /// Type 0 (§7.5.1.2).
    pub const SUBSYSTEM_VENDOR: u16 = 0x2c;
    pub const EXPANSION_ROM: u16 = 0x30;
    pub const CAPABILITIES: u16 = 0x34;
    pub const INTERRUPT_LINE: u16 = 0x3c;
    /// 0: none, 1: INTA to 4: INTD.
    pub const INTERRUPT_PIN: u16 = 0x3d;
    /// The corresponding registers of CardBus bridges (PC Card Standard, PCI to CardBus bridge).
    pub const CARDBUS_CAPABILITIES: u16 = 0x14;
    pub const CARDBUS_SUBSYSTEM_VENDOR: u16 = 0x40;
}

/// The header of a bridge (§7.5.1.3).
pub mod bridge {
    pub const PRIMARY_BUS: u16 = 0x18;
    pub const SECONDARY_BUS: u16 = 0x19;
    pub const SUBORDINATE_BUS: u16 = 0x1a;
    pub const IO_BASE: u16 = 0x1c;
    pub const IO_LIMIT: u16 = 0x1d;
    pub const IO_BASE_UPPER: u16 = 0x30;
    pub const IO_LIMIT_UPPER: u16 = 0x32;
    pub const MEMORY_BASE: u16 = 0x20;
    pub const MEMORY_LIMIT: u16 = 0x22;
    pub const PREFETCH_BASE: u16 = 0x24;
    pub const PREFETCH_LIMIT: u16 = 0x26;
    pub const PREFETCH_BASE_UPPER: u16 = 0x28;
    pub const PREFETCH_LIMIT_UPPER: u16 = 0x2c;
    /// Value of bits 3:0 of the prefetchable base and limit: the window may be above 4 GiB.
    pub const PREFETCH_64BIT: u8 = 0x1;
    /// Granularity of memory windows in bytes.
    pub const WINDOW_ALIGN: u64 = 1 << 20;
    pub const CONTROL: u16 = 0x3e;
    pub const CONTROL_SECONDARY_BUS_RESET: u8 = 1 << 6;
}

/// Base address registers (§7.5.1.2.1).
pub mod bar {
    pub const IO: u32 = 1 << 0;
    pub const IO_ADDRESS: u32 = !0x3;
    pub const MEMORY_TYPE: u32 = 0x6;
    pub const MEMORY_TYPE_64: u32 = 0x4;
    pub const PREFETCHABLE: u32 = 1 << 3;
    pub const MEMORY_ADDRESS: u32 = !0xf;
}

/// The list of capabilities (§7.5.1.1.11), with the IDs that this crate uses.
pub mod cap {
    pub const POWER_MANAGEMENT: u8 = 0x01;
    pub const MSI: u8 = 0x05;
    pub const VENDOR_SPECIFIC: u8 = 0x09;
    /// Subsystem of a bridge.
    pub const SUBSYSTEM: u8 = 0x0d;
    pub const EXPRESS: u8 = 0x10;
    pub const MSI_X: u8 = 0x11;
    pub const ADVANCED_FEATURES: u8 = 0x13;
    /// Maximum length of the list: 192 bytes hold 48 entries of 4 bytes (linux 7.2 drivers/pci/pci.h:
    /// `PCI_FIND_CAP_TTL`).
    pub const MOST: usize = 48;
}

/// The list of extended capabilities (§7.6.3), with the IDs that this crate uses.
pub mod ext {
    pub const ACS: u16 = 0x000d;
    pub const ARI: u16 = 0x000e;
    pub const ATS: u16 = 0x000f;
    pub const SRIOV: u16 = 0x0010;
    pub const PRI: u16 = 0x0013;
    pub const RESIZABLE_BAR: u16 = 0x0015;
    pub const PASID: u16 = 0x001b;
    pub const VENDOR_DESIGNATED: u16 = 0x0023;
    pub const VF_RESIZABLE_BAR: u16 = 0x0024;
    /// Maximum length that Linux follows (linux 7.2 drivers/pci/pci.h: `PCI_FIND_NEXT_EXT_CAP()`).
    pub const MOST: usize = (4096 - 256) / 8;
}

/// PCI Power Management (§7.5.2).
pub mod pm {
    pub const CONTROL: u16 = 0x04;
    pub const CONTROL_STATE: u16 = 0x0003;
    pub const CONTROL_NO_SOFT_RESET: u16 = 1 << 3;
}

/// MSI (§7.7.1).
pub mod msi {
    pub const CONTROL: u16 = 0x02;
    pub const CONTROL_ENABLE: u16 = 1 << 0;
    /// First of the 3 bits of multiple message capable: the base-2 logarithm of the number of vectors.
    pub const CONTROL_CAPABLE_SHIFT: u16 = 1;
    /// Multiple message enable.
    pub const CONTROL_VECTORS: u16 = 0x70;
    pub const CONTROL_VECTORS_SHIFT: u16 = 4;
    pub const CONTROL_64BIT: u16 = 1 << 7;
    pub const CONTROL_MASKING: u16 = 1 << 8;
    pub const ADDRESS: u16 = 0x04;
}

/// MSI-X (§7.7.2).
pub mod msix {
    pub const CONTROL: u16 = 0x02;
    pub const CONTROL_TABLE_SIZE: u16 = 0x07ff;
    pub const CONTROL_FUNCTION_MASK: u16 = 1 << 14;
    pub const CONTROL_ENABLE: u16 = 1 << 15;
    pub const TABLE: u16 = 0x04;
    pub const PENDING: u16 = 0x08;
    pub const BAR_INDICATOR: u32 = 0x7;
    pub const ENTRY_BYTES: u64 = 16;
    /// In the last doubleword of an entry.
    pub const ENTRY_MASKED: u32 = 1 << 0;
}

/// Conventional PCI Advanced Features (PCI-SIG ECN of 2006, "Advanced Capabilities for Conventional PCI").
pub mod af {
    pub const CAPABILITIES: u16 = 0x03;
    pub const TRANSACTIONS_PENDING: u8 = 1 << 0;
    pub const FLR: u8 = 1 << 1;
    pub const CONTROL: u16 = 0x04;
    pub const CONTROL_FLR: u8 = 1 << 0;
}

/// The PCI Express capability (§7.5.3).
pub mod express {
    pub const FLAGS: u16 = 0x02;
    /// Version of the capability.
    pub const FLAGS_VERSION: u16 = 0xf;
    pub const FLAGS_SLOT: u16 = 1 << 8;
    pub const DEVICE_CAPABILITIES: u16 = 0x04;
    pub const DEVICE_CAPABILITIES_FLR: u32 = 1 << 28;
    pub const DEVICE_CONTROL: u16 = 0x08;
    pub const DEVICE_CONTROL_FLR: u16 = 1 << 15;
    pub const LINK_CAPABILITIES: u16 = 0x0c;
    /// Data link layer active reporting.
    pub const LINK_CAPABILITIES_ACTIVE: u32 = 1 << 20;
    pub const LINK_CONTROL: u16 = 0x10;
    pub const LINK_STATUS: u16 = 0x12;
    pub const LINK_STATUS_ACTIVE: u16 = 1 << 13;
    pub const SLOT_CAPABILITIES: u16 = 0x14;
    pub const SLOT_CAPABILITIES_HOTPLUG: u32 = 1 << 6;
    pub const SLOT_CONTROL: u16 = 0x18;
    pub const SLOT_STATUS: u16 = 0x1a;
    pub const SLOT_STATUS_PRESENT: u16 = 1 << 6;
    pub const ROOT_CONTROL: u16 = 0x1c;
    pub const DEVICE_CAPABILITIES_2: u16 = 0x24;
    pub const DEVICE_CAPABILITIES_2_ARI: u32 = 1 << 5;
    pub const DEVICE_CONTROL_2: u16 = 0x28;
    pub const DEVICE_CONTROL_2_ARI: u16 = 1 << 5;
    pub const LINK_CAPABILITIES_2: u16 = 0x2c;
    pub const LINK_CONTROL_2: u16 = 0x30;
}

/// Access Control Services (§6.12 and §7.7.11).
pub mod acs {
    pub const CAPABILITY: u16 = 0x04;
    pub const CONTROL: u16 = 0x06;
    pub const EGRESS_VECTOR: u16 = 0x08;
    /// Offset of the control register, a doubleword, in Intel's 100 and 200 series root ports (linux 7.2
    /// drivers/pci/quirks.c: `INTEL_SPT_ACS_CTRL`).
    pub const CONTROL_OF_DWORD_LAYOUT: u16 = 0x08;
}

/// Address Translation Services (§10.5.1).
pub mod ats {
    pub const CAPABILITY: u16 = 0x04;
    pub const CAPABILITY_QUEUE_DEPTH: u16 = 0x1f;
    pub const CAPABILITY_PAGE_ALIGNED: u16 = 1 << 5;
    pub const CONTROL: u16 = 0x06;
    pub const CONTROL_STU: u16 = 0x1f;
    pub const CONTROL_ENABLE: u16 = 1 << 15;
}

/// Alternative Routing-ID Interpretation (§6.13).
pub mod ari {
    pub const CAPABILITY: u16 = 0x04;
    pub const CAPABILITY_ACS_GROUPS: u16 = 1 << 1;
    pub const CONTROL: u16 = 0x06;
    pub const CONTROL_ACS_GROUPS: u16 = 1 << 1;
}

/// Single Root I/O Virtualization (§9.3.3).
pub mod sriov {
    pub const CONTROL: u16 = 0x08;
    pub const CONTROL_VF_ENABLE: u16 = 1 << 0;
    pub const CONTROL_ARI_HIERARCHY: u16 = 1 << 4;
    pub const TOTAL_VFS: u16 = 0x0e;
    pub const NUM_VFS: u16 = 0x10;
    pub const VF_OFFSET: u16 = 0x14;
    pub const VF_STRIDE: u16 = 0x16;
    pub const VF_DEVICE: u16 = 0x1a;
    pub const VF_BAR0: u16 = 0x24;
}

/// Designated vendor-specific capabilities (§7.9.6), and the CXL capability that affects resets (CXL r3.1 §8.1.5, CXL
/// Extensions DVSEC for Ports).
pub mod dvsec {
    pub const VENDOR: u16 = 0x04;
    pub const ID: u16 = 0x08;
    pub const CXL_VENDOR: u16 = 0x1e98;
    pub const CXL_PORT: u16 = 3;
    pub const CXL_PORT_CONTROL: u16 = 0x0c;
    pub const CXL_PORT_CONTROL_UNMASK_SBR: u16 = 1 << 0;
}
