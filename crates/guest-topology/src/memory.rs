//! Where guest memory and BARs can be, so that devices reach them.

use iommu_group::{Address, AddressRange, Gpa, Iova, MemoryHole};
use thiserror::Error;

use crate::Demands;

/// Guest memory, or a window of a peer, is at an address that a device cannot reach.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum MemoryError {
    /// The IOMMU does not translate all of the memory.
    #[error("guest memory at {memory} is outside of what the IOMMU translates")]
    Untranslated {
        /// The memory.
        memory: AddressRange<Gpa>,
    },
    /// Requests to the memory do not reach the IOMMU.
    #[error("guest memory at {memory} is in {hole}")]
    Hole {
        /// The memory.
        memory: AddressRange<Gpa>,
        /// The hole that contains the memory.
        hole: MemoryHole,
    },
    /// The memory overlaps the fixed BARs of a peer.
    #[error("guest memory at {memory} overlaps {window}, where BARs of a peer must be")]
    Window {
        /// The memory.
        memory: AddressRange<Gpa>,
        /// The window.
        window: AddressRange<Gpa>,
    },
    /// The IOMMU does not translate a window that must be at its bus address. A request that is redirected to the IOMMU
    /// must find the BAR at the same address.
    #[error(
        "BARs of a peer must be at the bus address {window}, outside of what the IOMMU translates"
    )]
    UntranslatedWindow {
        /// The window.
        window: AddressRange<Gpa>,
    },
}

/// Checks regions of guest memory against the address ranges that the IOMMU translates for the devices, and against the
/// memory holes and fixed windows of `demands`.
///
/// # Errors
/// The first [`MemoryError`].
pub fn check_memory(
    memory: impl IntoIterator<Item = AddressRange<Gpa>>,
    iova_ranges: &[AddressRange<Iova>],
    demands: &Demands,
) -> Result<(), MemoryError> {
    let is_translated = |range: &AddressRange<Gpa>| {
        let range = AddressRange::new(Iova::of_guest(range.start()), range.len_bytes());
        range.is_some_and(|range| iova_ranges.iter().any(|usable| usable.contains(&range)))
    };
    for window in &demands.fixed_windows {
        if !is_translated(window) {
            return Err(MemoryError::UntranslatedWindow { window: *window });
        }
    }
    for memory in memory {
        if !is_translated(&memory) {
            return Err(MemoryError::Untranslated { memory });
        }
        let last = memory.end().value().saturating_sub(1);
        let addresses = memory.start().value()..=last;
        if let Some(hole) = MemoryHole::worst(&demands.holes, &addresses) {
            let hole = hole.clone();
            return Err(MemoryError::Hole { memory, hole });
        }
        let mut windows = demands.fixed_windows.iter();
        if let Some(window) = windows.find(|window| window.intersect(&memory).is_some()) {
            let window = *window;
            return Err(MemoryError::Window { memory, window });
        }
    }
    Ok(())
}

/// The parts of `windows` where BARs without fixed addresses can be: those that the IOMMU translates, without the memory
/// holes and fixed windows of `demands`. They are the apertures for
/// [`assign_resources`](crate::assign_resources), in the order of the windows.
#[must_use]
pub fn usable_apertures(
    windows: &[AddressRange<Gpa>],
    iova_ranges: &[AddressRange<Iova>],
    demands: &Demands,
) -> Vec<AddressRange<Gpa>> {
    let translated = |window: &AddressRange<Gpa>| {
        let window = *window;
        iova_ranges.iter().filter_map(move |iova| {
            let [start, end] = [iova.start(), iova.end()].map(|at| Gpa::new(at.value()));
            AddressRange::between(start, end)?.intersect(&window)
        })
    };
    let holes = demands
        .holes
        .iter()
        .map(|hole| (*hole.range.start(), hole.range.end().saturating_add(1)));
    let fixed = demands.fixed_windows.iter();
    let fixed = fixed.map(|window| (window.start().value(), window.end().value()));
    let mut usable: Vec<_> = windows.iter().flat_map(translated).collect();
    for (start, end) in holes.chain(fixed) {
        let around = |range: AddressRange<Gpa>| {
            let below = Gpa::new(start).min(range.end());
            let above = Gpa::new(end).max(range.start());
            [(range.start(), below), (above, range.end())]
        };
        let parts = usable.into_iter().flat_map(around);
        usable = parts
            .filter_map(|(start, end)| AddressRange::between(start, end))
            .collect();
    }
    usable
}

#[cfg(test)]
mod tests {
    use iommu_group::{HoleCause, Sbdf};

    use super::*;
    use crate::SizeAlign;

    fn range<A: Address>(start: u64, end: u64) -> AddressRange<A> {
        AddressRange::new(A::new(start), end - start).unwrap()
    }

    fn demands(hole: (u64, u64), window: (u64, u64)) -> Demands {
        let nothing = SizeAlign {
            bytes: 0,
            align_bytes: 1,
        };
        Demands {
            buses: 0,
            memory: nothing,
            prefetchable: nothing,
            fixed_windows: vec![range(window.0, window.1)],
            holes: vec![MemoryHole {
                range: hole.0..=hole.1 - 1,
                port: Sbdf::from_devfn(0, 0, 0x20),
                cause: HoleCause::Switch,
                certain: true,
            }],
        }
    }

    #[test]
    fn memory_is_inside_iova_ranges_and_clear_of_holes_and_windows() {
        let demands = demands((0x4000, 0x5000), (0x8000, 0x9000));
        let usable = [range(0, 0x1_0000), range(0x2_0000, 0x3_0000)];
        let check = |start, end| check_memory([range(start, end)], &usable, &demands);
        // Up to each limit, and one byte beyond it.
        for (start, end) in [
            (0, 0x4000),
            (0x5000, 0x8000),
            (0x9000, 0x1_0000),
            (0x2_0000, 0x3_0000),
        ] {
            assert_eq!(check(start, end), Ok(()), "{start:#x}..{end:#x}");
        }
        for (start, end, expected) in [
            (0, 0x4001, "a hole"),
            (0x4fff, 0x8000, "a hole"),
            (0x5000, 0x8001, "a window"),
            (0x8fff, 0x1_0000, "a window"),
            (0x9000, 0x1_0001, "untranslated"),
            (0x1_ffff, 0x3_0000, "untranslated"),
            (0x9000, 0x2_1000, "untranslated"),
        ] {
            let found = match check(start, end) {
                Ok(()) => "nothing",
                Err(MemoryError::Hole { .. }) => "a hole",
                Err(MemoryError::Window { .. }) => "a window",
                Err(MemoryError::Untranslated { .. }) => "untranslated",
                Err(MemoryError::UntranslatedWindow { .. }) => "an untranslated window",
            };
            assert_eq!(found, expected, "{start:#x}..{end:#x}");
        }
    }

    #[test]
    fn apertures_are_translated_and_clear_of_holes_and_fixed_windows() {
        let demands = demands((0x4000, 0x5000), (0x8000, 0x9000));
        let usable = |windows: &[(u64, u64)]| {
            let windows: Vec<_> = windows.iter().map(|(a, b)| range(*a, *b)).collect();
            let translated = [range(0, 0x1_0000), range(0x2_0000, 0x3_0000)];
            let found = usable_apertures(&windows, &translated, &demands);
            let bounds = found.iter().map(|r| (r.start().value(), r.end().value()));
            bounds.collect::<Vec<_>>()
        };
        assert_eq!(
            usable(&[(0x3000, 0xa000)]),
            [(0x3000, 0x4000), (0x5000, 0x8000), (0x9000, 0xa000)]
        );
        assert_eq!(
            usable(&[(0xf000, 0x2_1000), (0x4800, 0x5800)]),
            [(0xf000, 0x1_0000), (0x2_0000, 0x2_1000), (0x5000, 0x5800)]
        );
        assert_eq!(usable(&[(0x4000, 0x5000), (0x3_0000, 0x4_0000)]), []);
    }

    #[test]
    fn fixed_windows_must_be_translated() {
        let demands = demands((0x4000, 0x5000), (0x8000, 0x1_1000));
        let error = check_memory([], &[range(0, 0x1_0000)], &demands).unwrap_err();
        assert_eq!(
            error.to_string(),
            "BARs of a peer must be at the bus address 0x8000..0x11000, outside of what the IOMMU translates"
        );
    }
}
