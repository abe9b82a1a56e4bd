//! The checks of the suite. Each restores the context.

use crate::dma::DmaError;
use crate::memory::HostMemory;
use iommu_group::{Address, AddressRange, Iova};

use super::{Check, Failure, PAGE, Ram, TestBackend};

/// I/O address at which checks map: every IOMMU can translate it.
const HERE: u64 = 0x10_0000;

pub(super) const ALL: [Check<dyn TestBackend>; 12] = [
    check("a_device_reaches_what_is_mapped", reaches),
    check("a_device_does_not_reach_what_was_unmapped", stops),
    check("the_same_place_can_be_mapped_again", again),
    check("memory_may_appear_at_two_places", twice),
    check("overlaps_are_refused_and_leave_what_is_there", overlaps),
    check("a_refused_mapping_leaves_nothing", nothing),
    check("a_range_is_unmapped_exactly_as_it_was_mapped", exactly),
    check("what_is_not_mapped_is_not_unmapped", absent),
    check("neighbours_stay", neighbours),
    check(
        "weakness_11_outside_of_the_iommus_ranges_is_refused",
        outside,
    ),
    check("a_bar_is_mapped_only_while_it_decodes", decoding),
    check("a_bar_that_does_not_decode_is_unmapped", sleeping),
];

const fn check(
    name: &'static str,
    run: fn(&(dyn TestBackend + 'static), &Ram) -> Result<(), Failure>,
) -> Check<dyn TestBackend> {
    Check { name, run }
}

fn iova(value: u64) -> Iova {
    Iova::new(value)
}

fn map(rig: &dyn TestBackend, at: u64, memory: HostMemory) -> Result<AddressRange<Iova>, Failure> {
    let mapped = rig.backend().map(iova(at), memory);
    mapped.map_err(|error| error.to_string())
}

fn unmap(rig: &dyn TestBackend, range: AddressRange<Iova>) -> Result<(), Failure> {
    let unmapped = rig.backend().unmap(range);
    unmapped.map_err(|error| error.to_string())
}

/// Checks that a mapping is refused with this errno.
fn refused(rig: &dyn TestBackend, at: u64, memory: HostMemory, errno: i32) -> Result<(), Failure> {
    refused_with_any(rig, at, memory, &[errno])
}

/// Checks that a mapping is refused with one of these errnos.
fn refused_with_any(
    rig: &dyn TestBackend,
    at: u64,
    memory: HostMemory,
    errnos: &[i32],
) -> Result<(), Failure> {
    match rig.backend().map(iova(at), memory) {
        Err(DmaError::Map { error, .. })
            if error.raw_os_error().is_some_and(|e| errnos.contains(&e)) =>
        {
            Ok(())
        }
        Err(other) => Err(format!("refused with {other}, not with errno {errnos:?}")),
        Ok(range) => {
            unmap(rig, range)?;
            Err(format!("{range} was mapped"))
        }
    }
}

fn not_mapped(rig: &dyn TestBackend, range: Option<AddressRange<Iova>>) -> Result<(), Failure> {
    let range = range.ok_or("not a range")?;
    match rig.backend().unmap(range) {
        Err(DmaError::NotMapped(told)) if told == range => Ok(()),
        Err(other) => Err(format!("unmapping {range} failed with {other}")),
        Ok(()) => Err(format!("{range} was unmapped")),
    }
}

fn expect<T: PartialEq + std::fmt::Debug>(
    what: &str,
    found: T,
    expected: T,
) -> Result<(), Failure> {
    if found == expected {
        return Ok(());
    }
    Err(format!("{what}: {found:?} instead of {expected:?}"))
}

fn reaches(rig: &dyn TestBackend, ram: &Ram) -> Result<(), Failure> {
    let range = map(rig, HERE, ram.pages(2)?)?;
    expect(
        "range",
        Some(range),
        AddressRange::new(iova(HERE), 2 * PAGE),
    )?;
    rig.store(iova(HERE + PAGE + 8), 0x1234_5678);
    let word = ram.word(2, PAGE + 8);
    unmap(rig, range)?;
    expect("what arrived", word?, 0x1234_5678)
}

fn stops(rig: &dyn TestBackend, ram: &Ram) -> Result<(), Failure> {
    let range = map(rig, HERE, ram.pages(1)?)?;
    rig.store(iova(HERE), 1);
    expect("what arrived while mapped", ram.word(1, 0)?, 1)?;
    unmap(rig, range)?;
    rig.store(iova(HERE), 2);
    expect("what is there after", ram.word(1, 0)?, 1)
}

fn again(rig: &dyn TestBackend, ram: &Ram) -> Result<(), Failure> {
    let range = map(rig, HERE, ram.pages(1)?)?;
    unmap(rig, range)?;
    let range = map(rig, HERE, ram.pages(2)?)?;
    rig.store(iova(HERE), 7);
    unmap(rig, range)?;
    expect("the first memory", ram.word(1, 0)?, 0)?;
    expect("the second memory", ram.word(2, 0)?, 7)
}

fn twice(rig: &dyn TestBackend, ram: &Ram) -> Result<(), Failure> {
    let one = map(rig, HERE, ram.pages(1)?)?;
    let two = map(rig, HERE + PAGE, ram.pages(1)?)?;
    unmap(rig, one)?;
    rig.store(iova(HERE + PAGE), 9);
    unmap(rig, two)?;
    expect("what arrived through the second", ram.word(1, 0)?, 9)
}

fn overlaps(rig: &dyn TestBackend, ram: &Ram) -> Result<(), Failure> {
    let range = map(rig, HERE, ram.pages(2)?)?;
    for (at, pages) in [
        (HERE, 2),
        (HERE, 1),
        (HERE + PAGE, 1),
        (HERE + PAGE, 2),
        (HERE - PAGE, 2),
        (HERE - 4 * PAGE, 16),
    ] {
        refused(rig, at, ram.pages(pages)?, libc::EEXIST)?;
    }
    rig.store(iova(HERE), 3);
    unmap(rig, range)?;
    expect("what is there", ram.word(2, 0)?, 3)
}

fn nothing(rig: &dyn TestBackend, ram: &Ram) -> Result<(), Failure> {
    let range = map(rig, HERE, ram.pages(1)?)?;
    refused(rig, HERE - 4 * PAGE, ram.pages(16)?, libc::EEXIST)?;
    not_mapped(rig, AddressRange::new(iova(HERE - 4 * PAGE), 16 * PAGE))?;
    // The addresses around it are still free.
    let before = map(rig, HERE - 2 * PAGE, ram.pages(2)?)?;
    let after = map(rig, HERE + PAGE, ram.pages(16)?)?;
    for range in [range, before, after] {
        unmap(rig, range)?;
    }
    Ok(())
}

fn exactly(rig: &dyn TestBackend, ram: &Ram) -> Result<(), Failure> {
    let range = map(rig, HERE, ram.pages(2)?)?;
    for (at, len_bytes) in [
        (HERE, PAGE),
        (HERE + PAGE, PAGE),
        (HERE, 3 * PAGE),
        (HERE - PAGE, 3 * PAGE),
        (HERE, 1),
    ] {
        not_mapped(rig, AddressRange::new(iova(at), len_bytes))?;
    }
    rig.store(iova(HERE), 4);
    unmap(rig, range)?;
    expect("what is there", ram.word(2, 0)?, 4)
}

fn absent(rig: &dyn TestBackend, ram: &Ram) -> Result<(), Failure> {
    not_mapped(rig, AddressRange::new(iova(HERE), PAGE))?;
    let range = map(rig, HERE, ram.pages(1)?)?;
    unmap(rig, range)?;
    not_mapped(rig, Some(range))
}

fn neighbours(rig: &dyn TestBackend, ram: &Ram) -> Result<(), Failure> {
    let one = map(rig, HERE, ram.pages(1)?)?;
    let two = map(rig, HERE + PAGE, ram.pages(2)?)?;
    let three = map(rig, HERE + 3 * PAGE, ram.pages(16)?)?;
    unmap(rig, two)?;
    rig.store(iova(HERE), 5);
    rig.store(iova(HERE + PAGE), 5);
    rig.store(iova(HERE + 3 * PAGE), 5);
    unmap(rig, one)?;
    unmap(rig, three)?;
    let words = [ram.word(1, 0)?, ram.word(2, 0)?, ram.word(16, 0)?];
    expect("what arrived", words, [5, 0, 5])
}

fn outside(rig: &dyn TestBackend, ram: &Ram) -> Result<(), Failure> {
    let ranges = rig.ranges();
    let (first, last) = (ranges.first(), ranges.last());
    let (Some(first), Some(last)) = (first, last) else {
        return Err("the IOMMU translates nothing".to_owned());
    };
    // Across the end, beyond it, and across the start of the hole between two ranges.
    let end = last.end().value();
    refused(rig, end - PAGE, ram.pages(2)?, libc::EINVAL)?;
    refused(rig, end, ram.pages(1)?, libc::EINVAL)?;
    if ranges.len() > 1 {
        let hole = first.end().value();
        refused(rig, hole, ram.pages(1)?, libc::EINVAL)?;
        refused(rig, hole - PAGE, ram.pages(2)?, libc::EINVAL)?;
    }
    // The last page is usable.
    let range = map(rig, end - PAGE, ram.pages(1)?)?;
    unmap(rig, range)
}

fn decoding(rig: &dyn TestBackend, _ram: &Ram) -> Result<(), Failure> {
    rig.decode(false);
    let off = refused_with_any(rig, HERE, rig.bar(), &[libc::EFAULT, libc::ENODEV]);
    rig.decode(true);
    off?;
    let range = map(rig, HERE, rig.bar())?;
    refused(rig, HERE, rig.bar(), libc::EEXIST)?;
    unmap(rig, range)
}

fn sleeping(rig: &dyn TestBackend, ram: &Ram) -> Result<(), Failure> {
    rig.decode(true);
    let range = map(rig, HERE, rig.bar())?;
    rig.decode(false);
    let unmapped = unmap(rig, range);
    // The address is free.
    let ram = ram.pages(1)?;
    let again = map(rig, HERE, ram).and_then(|range| unmap(rig, range));
    rig.decode(true);
    unmapped.and(again)
}
