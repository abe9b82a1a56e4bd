//! The boot parameters ("zero page"): setup header, memory map, addresses of what was loaded.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use iommu_group::Address;
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use vm_memory::{ByteValued, GuestAddress};

use crate::layout::{GpaRange, Layout};

/// Offset of the setup header in a bzImage and in the zero page.
const HEADER_OFFSET: u64 = 0x1f1;
/// `type_of_loader`: no registered loader.
const LOADER_UNDEFINED: u8 = 0xff;
/// Memory types of the E820 map.
const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;
/// End of the usable RAM below 1 MiB: the BIOS data area of PCs begins here.
const LOW_RAM_END: u64 = 0x9_fc00;
/// Start of RAM above the BIOS area.
const HIGH_RAM_START: u64 = 0x10_0000;

/// There is no memory map.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a memory map of {entries} entries does not fit into the boot parameters")]
pub(crate) struct E820Error {
    entries: usize,
}

/// Parameters of the zero page.
pub(super) struct BootParameters<'a> {
    pub(super) header: setup_header,
    pub(super) cmdline: GuestAddress,
    pub(super) initramfs: Option<GpaRange>,
    pub(super) rsdp: GuestAddress,
    pub(super) layout: &'a Layout,
}

/// The setup header in a bzImage.
pub(super) fn read_setup_header(file: &File) -> io::Result<setup_header> {
    let mut header = setup_header::default();
    file.read_exact_at(header.as_mut_slice(), HEADER_OFFSET)?;
    Ok(header)
}

/// The zero page.
pub(super) fn build(parameters: &BootParameters<'_>) -> Result<boot_params, E820Error> {
    let (cmdline_low, cmdline_high) = split(parameters.cmdline.0);
    let (start, bytes) = parameters
        .initramfs
        .map_or((0, 0), |range| (range.start().value(), range.len_bytes()));
    let (start_low, start_high) = split(start);
    let (bytes_low, bytes_high) = split(bytes);
    let mut page = boot_params {
        hdr: parameters.header,
        acpi_rsdp_addr: parameters.rsdp.0,
        ext_cmd_line_ptr: cmdline_high,
        ext_ramdisk_image: start_high,
        ext_ramdisk_size: bytes_high,
        ..Default::default()
    };
    page.hdr.type_of_loader = LOADER_UNDEFINED;
    page.hdr.cmd_line_ptr = cmdline_low;
    page.hdr.ramdisk_image = start_low;
    page.hdr.ramdisk_size = bytes_low;

    let map = e820(parameters.layout);
    let entries = map.len();
    let mut table = page.e820_table;
    for (index, entry) in map.into_iter().enumerate() {
        *table.get_mut(index).ok_or(E820Error { entries })? = entry;
    }
    page.e820_table = table;
    page.e820_entries = u8::try_from(entries).map_err(|_| E820Error { entries })?;
    Ok(page)
}

/// The memory map: RAM without the BIOS area, and ECAM as reserved.
fn e820(layout: &Layout) -> Vec<boot_e820_entry> {
    let parts = [
        (GpaRange::of_constants(0, LOW_RAM_END), E820_RAM),
        (
            GpaRange::of_constants(LOW_RAM_END, HIGH_RAM_START),
            E820_RESERVED,
        ),
        (GpaRange::of_constants(HIGH_RAM_START, u64::MAX), E820_RAM),
    ];
    let mut map = vec![(layout.ecam, E820_RESERVED)];
    for region in &layout.ram {
        let parts = parts.iter();
        map.extend(parts.filter_map(|(part, kind)| Some((region.intersect(part)?, *kind))));
    }
    map.sort_by_key(|(range, _)| range.start());
    map.into_iter()
        .map(|(range, kind)| boot_e820_entry {
            addr: range.start().value(),
            size: range.len_bytes(),
            r#type: kind,
        })
        .collect()
}

/// Low and high half.
fn split(value: u64) -> (u32, u32) {
    let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
    (
        u32::from_le_bytes([a, b, c, d]),
        u32::from_le_bytes([e, f, g, h]),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::LayoutRequest;

    fn layout(ram_bytes: u64, ram_holes: &[GpaRange]) -> Layout {
        Layout::new(&LayoutRequest {
            ram_bytes,
            limit: 1 << 40,
            holes: ram_holes,
            fixed: &[],
        })
        .unwrap()
    }

    fn map(layout: &Layout) -> Vec<(u64, u64, u32)> {
        e820(layout)
            .into_iter()
            .map(|entry| (entry.addr, entry.size, entry.r#type))
            .collect()
    }

    #[test]
    fn memory_map_has_all_ram_without_the_bios_area() {
        assert_eq!(
            map(&layout(5 << 30, &[])),
            [
                (0, 0x9_fc00, E820_RAM),
                (0x9_fc00, 0x6_0400, E820_RESERVED),
                (0x10_0000, 0xaff0_0000, E820_RAM),
                (0xb000_0000, 256 << 20, E820_RESERVED),
                (1 << 32, 0x9000_0000, E820_RAM),
            ]
        );
    }

    #[test]
    fn memory_map_leaves_holes_out() {
        let hole = GpaRange::of_constants(0x1000_0000, 0x2000_0000);
        let map = map(&layout(1 << 30, &[hole]));
        assert_eq!(map[2], (0x10_0000, 0xff0_0000, E820_RAM));
        assert_eq!(map[3], (0x2000_0000, 0x3000_0000, E820_RAM));
    }

    #[test]
    fn memory_map_with_too_many_entries_is_refused() {
        let holes: Vec<_> = (1..200u64)
            .map(|n| GpaRange::of_constants(n << 21, (n << 21) + 0x1000))
            .collect();
        let layout = layout(1 << 30, &holes);
        let parameters = BootParameters {
            header: setup_header::default(),
            cmdline: GuestAddress(0),
            initramfs: None,
            rsdp: GuestAddress(0),
            layout: &layout,
        };
        assert!(build(&parameters).is_err());
    }

    #[test]
    fn zero_page_has_the_addresses_of_what_was_loaded() {
        let layout = layout(1 << 30, &[]);
        let page = build(&BootParameters {
            header: setup_header::default(),
            cmdline: GuestAddress(0x2_0000),
            initramfs: Some(GpaRange::of_constants(0x3000_0000, 0x3010_0000)),
            rsdp: GuestAddress(0xe_0000),
            layout: &layout,
        })
        .unwrap();
        let header = page.hdr;
        assert_eq!({ header.cmd_line_ptr }, 0x2_0000);
        assert_eq!({ header.ramdisk_image }, 0x3000_0000);
        assert_eq!({ header.ramdisk_size }, 0x10_0000);
        assert_eq!({ page.acpi_rsdp_addr }, 0xe_0000);
        assert_eq!(page.e820_entries, 4);
    }
}
