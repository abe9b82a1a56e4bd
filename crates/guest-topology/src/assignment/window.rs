//! Bridge windows, and rules for one window and for several.

use iommu_group::spec::bridge::WINDOW_ALIGN;
use iommu_group::{Address, AddressRange, Bar, Gpa, Sbdf};

use super::AssignError;
use super::size_align::Kind;

/// The bus address of a fixed BAR, if a bridge can forward it (PCI-to-PCI bridge r1.2 §3.2.5.8: only the prefetchable
/// window can be above 4 GiB).
pub(super) fn fixed_address(bar: &Bar) -> Result<Gpa, &'static str> {
    let known = bar.bus_address.map(Gpa::at_bus_address);
    let gpa = known.filter(|gpa| gpa.value() != 0);
    let gpa = gpa.ok_or("the host has assigned none")?;
    if !gpa.value().is_multiple_of(bar.size_bytes) {
        return Err("that is not a multiple of its size");
    }
    if Kind::at(gpa) == Kind::Prefetchable && Kind::of(bar) == Kind::Memory {
        return Err("that is above 4 GiB, and it is not prefetchable");
    }
    Ok(gpa)
}

/// The kind of window to extend by a range: the window that overlaps it already, otherwise by its address.
pub(super) fn kind_around(range: &AddressRange<Gpa>, own: &[Option<AddressRange<Gpa>>; 2]) -> Kind {
    let [memory, prefetchable] =
        own.map(|window| window.is_some_and(|window| window.intersect(range).is_some()));
    match (memory, prefetchable) {
        (true, _) => Kind::Memory,
        (false, true) => Kind::Prefetchable,
        (false, false) => Kind::at(range.start()),
    }
}

/// The smallest bridge window that holds all ranges.
pub(super) fn hull(ranges: &[AddressRange<Gpa>]) -> Option<AddressRange<Gpa>> {
    let start = ranges.iter().map(|r| r.start().value()).min()? / WINDOW_ALIGN * WINDOW_ALIGN;
    let end = ranges.iter().map(|r| r.end().value()).max()?;
    let end = end.checked_next_multiple_of(WINDOW_ALIGN)?;
    AddressRange::new(Gpa::new(start), end - start)
}

/// Checks that no two windows overlap.
pub(super) fn apart(windows: &[(Sbdf, AddressRange<Gpa>)]) -> Result<(), AssignError> {
    for (at, (a, first)) in windows.iter().enumerate() {
        for (b, second) in windows.iter().skip(at + 1) {
            if first.intersect(second).is_some() {
                return Err(AssignError::Overlap {
                    a: *a,
                    first: *first,
                    b: *b,
                    second: *second,
                });
            }
        }
    }
    Ok(())
}
