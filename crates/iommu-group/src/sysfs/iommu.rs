//! Capabilities of the IOMMU of a function.

use std::fs;

use super::error::is_missing;
use super::{Sysfs, SysfsError};
use crate::Sbdf;

impl Sysfs {
    /// Width of a function's I/O virtual addresses in bits. `None` if the IOMMU does not report it. Intel's IOMMU
    /// reports it in its capability register; others translate as many bits as the CPU.
    pub fn iommu_address_bits(&self, sbdf: Sbdf) -> Result<Option<u8>, SysfsError> {
        let path = self.device_dir(sbdf).join("iommu/intel-iommu/cap");
        match fs::read_to_string(&path) {
            Ok(text) => Ok(u64::from_str_radix(text.trim(), 16).ok().and_then(vtd_bits)),
            Err(error) if is_missing(&error) => Ok(None),
            Err(error) => Err(SysfsError::io("read", &path)(error)),
        }
    }
}

/// The smaller of the maximum guest address width and the range of the deepest page table (VT-d r4.1 §11.4.2: MGAW in
/// bits 21:16, SAGAW in 12:8).
fn vtd_bits(capability: u64) -> Option<u8> {
    let bits = |low: u32, len: u32| u8::try_from(capability >> low & ((1 << len) - 1)).ok();
    let guest = bits(16, 6)? + 1;
    let levels = bits(8, 5)?;
    let tables = [(3, 57), (2, 48), (1, 39)]
        .into_iter()
        .find(|(level, _)| levels & (1 << level) != 0);
    Some(tables.map_or(guest, |(_, reach)| guest.min(reach)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_narrower_of_the_two_counts() {
        // QEMU with aw-bits=39 and 48; then page tables that cover more, as many, and fewer bits than the address
        // width.
        for (capability, bits) in [
            (0x00d2_0080_2026_0286, 39),
            (0x00d2_0080_222f_0686, 48),
            (0x0000_0000_002d_0c00, 46),
            (0x0000_0000_0038_0e00, 57),
            (0x0000_0000_0038_0600, 48),
        ] {
            assert_eq!(vtd_bits(capability), Some(bits), "{capability:x}");
        }
    }

    #[test]
    fn an_iommu_that_does_not_say_is_not_guessed() {
        let dir = tempfile::tempdir().unwrap();
        let sysfs = Sysfs::new(dir.path());
        let sbdf: Sbdf = "0000:03:00.0".parse().unwrap();
        assert_eq!(sysfs.iommu_address_bits(sbdf).unwrap(), None);
        let device = sysfs.device_dir(sbdf).join("iommu/intel-iommu");
        fs::create_dir_all(&device).unwrap();
        fs::write(device.join("cap"), "d2008020260286\n").unwrap();
        assert_eq!(sysfs.iommu_address_bits(sbdf).unwrap(), Some(39));
        fs::write(device.join("cap"), "nonsense\n").unwrap();
        assert_eq!(sysfs.iommu_address_bits(sbdf).unwrap(), None);
    }
}
