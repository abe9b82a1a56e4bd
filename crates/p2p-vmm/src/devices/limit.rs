//! Address limit of the host's IOMMUs, for a VM without devices, which has no IOMMU context to ask.

use std::fs;
use std::path::Path;

/// End of the addresses that every IOMMU of the host can translate, if sysfs has it.
pub(crate) fn address_limit() -> Option<u64> {
    limit_in(Path::new("/sys/class/iommu"))
}

fn limit_in(class: &Path) -> Option<u64> {
    let entries = fs::read_dir(class).ok()?;
    let widths = entries.filter_map(|entry| {
        let file = entry.ok()?.path().join("intel-iommu/cap");
        width(fs::read_to_string(file).ok()?.trim())
    });
    1_u64.checked_shl(widths.min()?)
}

/// Address width in bits, from the capability register of a VT-d unit (VT-d r4.1 §11.4.2: MGAW, bits 21 to 16, less
/// one).
fn width(capability: &str) -> Option<u32> {
    let capability = u64::from_str_radix(capability.trim_start_matches("0x"), 16).ok()?;
    u32::try_from((capability >> 16 & 0x3f) + 1).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_that_of_the_narrowest_iommu() {
        let dir = tempfile::tempdir().unwrap();
        for (name, capability) in [("dmar0", "d2008c22260206\n"), ("dmar1", "d2008c222f0686\n")] {
            let unit = dir.path().join(name).join("intel-iommu");
            fs::create_dir_all(&unit).unwrap();
            fs::write(unit.join("cap"), capability).unwrap();
        }
        fs::create_dir_all(dir.path().join("ivhd0")).unwrap();
        assert_eq!(limit_in(dir.path()), Some(1 << 39));
    }

    #[test]
    fn a_host_without_capability_files_has_no_limit() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(limit_in(dir.path()), None);
        assert_eq!(limit_in(&dir.path().join("absent")), None);
        assert_eq!(width("nonsense"), None);
    }
}
