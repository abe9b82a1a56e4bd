//! Extended capabilities other than ACS: ATS, ARI and SR-IOV.

use super::spec::{ari, ats, sriov};
use super::{BarRegister, ConfigSpace, bar};

/// Address Translation Services: the function can request translations from the IOMMU and use them (PCIe r6.0 §10.5.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ats {
    /// Whether ATS is enabled.
    pub enabled: bool,
    /// Smallest translation unit: 4096 bytes shifted left by this value.
    pub smallest_unit: u8,
    /// Whether untranslated addresses are always page-aligned. Intel's IOMMU driver requires it.
    pub page_aligned: bool,
    /// Maximum number of outstanding invalidations, 1 to 32.
    pub queue_depth: u8,
}

impl Ats {
    pub(super) fn decode(space: &ConfigSpace, offset: u16) -> Option<Self> {
        let capability = space.u16(offset.saturating_add(ats::CAPABILITY))?;
        let control = space.u16(offset.saturating_add(ats::CONTROL))?;
        let field = |value: u16| u8::try_from(value).unwrap_or(u8::MAX);
        Some(Self {
            enabled: control & ats::CONTROL_ENABLE != 0,
            smallest_unit: field(control & ats::CONTROL_STU),
            page_aligned: capability & ats::CAPABILITY_PAGE_ALIGNED != 0,
            queue_depth: match field(capability & ats::CAPABILITY_QUEUE_DEPTH) {
                0 => 32,
                depth => depth,
            },
        })
    }
}

/// Alternative Routing-ID Interpretation: a device has up to 256 functions and no device number (PCIe r6.0 §6.13).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ari {
    /// The next function of the device. 0 at the end.
    pub next_function: u8,
    /// Whether egress control uses function groups.
    pub acs_function_groups: bool,
    /// The function group of this function.
    pub function_group: u8,
}

impl Ari {
    pub(super) fn decode(space: &ConfigSpace, offset: u16) -> Option<Self> {
        let capability = space.u16(offset.saturating_add(ari::CAPABILITY))?;
        let control = space.u16(offset.saturating_add(ari::CONTROL))?;
        let [_, next_function] = capability.to_le_bytes();
        Some(Self {
            next_function,
            acs_function_groups: capability & ari::CAPABILITY_ACS_GROUPS != 0
                && control & ari::CONTROL_ACS_GROUPS != 0,
            function_group: u8::try_from((control >> 4) & 0x7).unwrap_or(0),
        })
    }
}

/// Single Root I/O Virtualization: a physical function and the numbering of its virtual functions (PCIe r6.0 §9.3.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sriov {
    /// Whether the virtual functions are enabled.
    pub enabled: bool,
    /// Whether virtual functions may use function numbers above 7.
    pub ari_hierarchy: bool,
    /// The maximum number of virtual functions.
    pub total_vfs: u16,
    /// The requested number of virtual functions.
    pub num_vfs: u16,
    /// Distance from the requester ID of the physical function to that of the first virtual function.
    pub vf_offset: u16,
    /// Distance between the requester IDs of consecutive virtual functions.
    pub vf_stride: u16,
    /// Device ID of the virtual functions. Their vendor ID is that of the physical function.
    pub vf_device: u16,
    /// BARs of the first virtual function. The BARs of the other virtual functions follow at consecutive addresses.
    pub vf_bars: [Option<BarRegister>; 6],
}

impl Sriov {
    pub(super) fn decode(space: &ConfigSpace, offset: u16) -> Option<Self> {
        let word = |register: u16| space.u16(offset.saturating_add(register));
        let control = word(sriov::CONTROL)?;
        Some(Self {
            enabled: control & sriov::CONTROL_VF_ENABLE != 0,
            ari_hierarchy: control & sriov::CONTROL_ARI_HIERARCHY != 0,
            total_vfs: word(sriov::TOTAL_VFS)?,
            num_vfs: word(sriov::NUM_VFS)?,
            vf_offset: word(sriov::VF_OFFSET)?,
            vf_stride: word(sriov::VF_STRIDE)?,
            vf_device: word(sriov::VF_DEVICE)?,
            vf_bars: bar::decode(|index| {
                space.u32(
                    offset
                        .saturating_add(sriov::VF_BAR0)
                        .saturating_add(4 * index),
                )
            }),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Space;

    fn space(bytes: &[(usize, u8)]) -> ConfigSpace {
        let mut all = vec![0; 4096];
        for (offset, byte) in bytes {
            all[0x100 + offset] = *byte;
        }
        ConfigSpace::new(&all)
    }

    #[test]
    fn ats() {
        let found = Ats::decode(&space(&[(4, 0x20), (6, 0x03), (7, 0x80)]), 0x100).unwrap();
        assert_eq!(
            found,
            Ats {
                enabled: true,
                smallest_unit: 3,
                page_aligned: true,
                queue_depth: 32
            }
        );
        let found = Ats::decode(&space(&[(4, 0x05)]), 0x100).unwrap();
        assert_eq!(
            (found.enabled, found.page_aligned, found.queue_depth),
            (false, false, 5)
        );
    }

    #[test]
    fn ari() {
        let found = Ari::decode(&space(&[(4, 0x02), (5, 0x09), (6, 0x32)]), 0x100).unwrap();
        assert_eq!(
            found,
            Ari {
                next_function: 9,
                acs_function_groups: true,
                function_group: 3
            }
        );
        let found = Ari::decode(&space(&[(6, 0x02)]), 0x100).unwrap();
        assert!(
            !found.acs_function_groups,
            "enabled without being implemented"
        );
    }

    #[test]
    fn sriov() {
        let bytes = [
            (0x08, 0x11),
            (0x0e, 0x40),
            (0x0f, 0x01),
            (0x10, 0x08),
            (0x14, 0x80),
            (0x16, 0x02),
            (0x1a, 0xca),
            (0x1b, 0x10),
            (0x24, 0x0c),
            (0x28, 0x20),
        ];
        let found = Sriov::decode(&space(&bytes), 0x100).unwrap();
        assert!(found.enabled && found.ari_hierarchy);
        assert_eq!((found.total_vfs, found.num_vfs), (0x140, 8));
        assert_eq!(
            (found.vf_offset, found.vf_stride, found.vf_device),
            (0x80, 2, 0x10ca)
        );
        assert_eq!(
            found.vf_bars[0],
            Some(BarRegister {
                space: Space::Memory64,
                prefetchable: true,
                address: 0x20_0000_0000
            })
        );
    }
}
