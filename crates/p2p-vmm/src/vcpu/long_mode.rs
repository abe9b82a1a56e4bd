//! 64-bit mode before the first instruction: descriptor table, page tables, control registers.
//!
//! The first 4 GiB are mapped one to one. The 64-bit boot protocol requires that at least for the kernel, the zero
//! page and the command line (linux 7.2 Documentation/arch/x86/boot.rst).

use kvm_bindings::{kvm_dtable, kvm_segment, kvm_sregs};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

/// Descriptor table.
const GDT: u64 = 0x500;
/// Page tables, one page each, and four page directories.
const PML4: u64 = 0x9000;
const PDPT: u64 = 0xa000;
const PAGE_DIRECTORIES: u64 = 0xb000;
const DIRECTORIES: u64 = 4;

/// Bytes of a page table, and entries in it.
const TABLE_BYTES: u64 = 4096;
const TABLE_ENTRIES: u64 = 512;
/// Bytes that an entry of a page directory maps.
const LARGE_PAGE_BYTES: u64 = 2 << 20;
/// Page table bits: present and writable, large page.
const PRESENT_WRITABLE: u64 = 0b11;
const LARGE_PAGE: u64 = 1 << 7;

/// Selectors of the boot protocol: code, data; then a task.
const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;
const TASK_SELECTOR: u16 = 0x20;

/// Control register and EFER bits.
const CR0_PROTECTED: u64 = 1 << 0;
const CR0_EXTENSION_TYPE: u64 = 1 << 4;
const CR0_PAGING: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LONG_MODE_ENABLE: u64 = 1 << 8;
const EFER_LONG_MODE_ACTIVE: u64 = 1 << 10;

/// Writes descriptor table and page tables into guest memory.
pub(super) fn write_tables(memory: &GuestMemoryMmap) -> Result<(), GuestMemoryError> {
    let descriptors = [
        0,
        0,
        descriptor(&code()),
        descriptor(&data()),
        descriptor(&task()),
        0,
    ];
    for (index, value) in (0..).zip(descriptors) {
        memory.write_obj(value, GuestAddress(GDT + index * 8))?;
    }
    memory.write_obj(PDPT | PRESENT_WRITABLE, GuestAddress(PML4))?;
    for index in 0..DIRECTORIES {
        let directory = PAGE_DIRECTORIES + index * TABLE_BYTES;
        memory.write_obj(directory | PRESENT_WRITABLE, GuestAddress(PDPT + index * 8))?;
    }
    for index in 0..DIRECTORIES * TABLE_ENTRIES {
        let page = (index * LARGE_PAGE_BYTES) | PRESENT_WRITABLE | LARGE_PAGE;
        memory.write_obj(page, GuestAddress(PAGE_DIRECTORIES + index * 8))?;
    }
    Ok(())
}

/// Sets `sregs` to 64-bit mode with the tables of [`write_tables`].
pub(super) fn enter(sregs: &mut kvm_sregs) {
    sregs.cs = code();
    for segment in [
        &mut sregs.ds,
        &mut sregs.es,
        &mut sregs.fs,
        &mut sregs.gs,
        &mut sregs.ss,
    ] {
        *segment = data();
    }
    sregs.tr = task();
    sregs.gdt = kvm_dtable {
        base: GDT,
        limit: 6 * 8 - 1,
        ..Default::default()
    };
    sregs.idt = kvm_dtable::default();
    sregs.cr3 = PML4;
    sregs.cr4 |= CR4_PAE;
    sregs.cr0 |= CR0_PROTECTED | CR0_EXTENSION_TYPE | CR0_PAGING;
    sregs.efer |= EFER_LONG_MODE_ENABLE | EFER_LONG_MODE_ACTIVE;
}

fn code() -> kvm_segment {
    kvm_segment {
        selector: CODE_SELECTOR,
        // Execute, read, accessed.
        type_: 0b1011,
        l: 1,
        ..flat()
    }
}

fn data() -> kvm_segment {
    kvm_segment {
        selector: DATA_SELECTOR,
        // Read, write, accessed.
        type_: 0b0011,
        db: 1,
        ..flat()
    }
}

fn task() -> kvm_segment {
    kvm_segment {
        selector: TASK_SELECTOR,
        // Busy 64-bit task.
        type_: 0b1011,
        s: 0,
        ..flat()
    }
}

/// The whole address space, ring 0, present.
fn flat() -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        present: 1,
        s: 1,
        g: 1,
        ..Default::default()
    }
}

/// Descriptor of a flat segment (Intel SDM vol. 3A §3.4.5).
fn descriptor(segment: &kvm_segment) -> u64 {
    let bit = |value: u8, position: u32| u64::from(value) << position;
    let limit_low = 0xffff;
    let limit_high = 0xf << 48;
    limit_low
        | bit(segment.type_, 40)
        | bit(segment.s, 44)
        | bit(segment.dpl, 45)
        | bit(segment.present, 47)
        | limit_high
        | bit(segment.l, 53)
        | bit(segment.db, 54)
        | bit(segment.g, 55)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> GuestMemoryMmap {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        write_tables(&memory).unwrap();
        memory
    }

    /// The result of a page table walk in `memory`.
    fn walk(memory: &GuestMemoryMmap, address: u64) -> u64 {
        let entry = |table: u64, shift: u32| {
            let index = address >> shift & 0x1ff;
            let entry: u64 = memory.read_obj(GuestAddress(table + index * 8)).unwrap();
            assert_eq!(entry & PRESENT_WRITABLE, PRESENT_WRITABLE);
            entry & !0xfff
        };
        let directory = entry(entry(PML4, 39), 30);
        entry(directory, 21) | address & (LARGE_PAGE_BYTES - 1)
    }

    #[test]
    fn first_four_gib_are_mapped_one_to_one() {
        let memory = memory();
        for address in [0, 0x7000, 0x10_0200, 0x7fff_ffff, 0xffff_f123] {
            assert_eq!(walk(&memory, address), address);
        }
    }

    #[test]
    fn descriptors_are_the_flat_ones_of_the_boot_protocol() {
        let memory = memory();
        let at = |selector: u16| -> u64 {
            let address = GuestAddress(GDT + u64::from(selector));
            memory.read_obj(address).unwrap()
        };
        assert_eq!(at(CODE_SELECTOR), 0x00af_9b00_0000_ffff);
        assert_eq!(at(DATA_SELECTOR), 0x00cf_9300_0000_ffff);
        assert_eq!(at(TASK_SELECTOR), 0x008f_8b00_0000_ffff);
    }

    #[test]
    fn paging_and_long_mode_are_on() {
        let mut sregs = kvm_sregs::default();
        enter(&mut sregs);
        assert_eq!(sregs.cr0 & (CR0_PAGING | CR0_PROTECTED), 0x8000_0001);
        assert_eq!(sregs.efer, 0x500);
        assert_eq!((sregs.cs.l, sregs.cs.db), (1, 0));
    }
}
