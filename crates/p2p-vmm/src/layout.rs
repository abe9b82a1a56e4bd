//! Guest-physical address map: a pure function from the size of memory to regions.
//!
//! ```text
//! 0            ┌ RAM (one region more than there are holes)
//! 0xb000_0000  ├ PCIe configuration space (ECAM), 256 buses; lower if a fixed PCI window overlaps it
//! 0xc000_0000  ├ 32-bit PCI window
//! 0xfec0_0000  ├ I/O APIC, local APICs
//! 4 GiB        ├ RAM that does not fit below
//! next 1 GiB   └ 64-bit PCI window: the largest free range
//! ```
//! Fixed PCI windows may be anywhere: they are the windows of peers that the host's switch reaches by bus address.
//! RAM and ECAM do not overlap them.

use iommu_group::{Address, AddressRange, Gpa};

/// 1 GiB in bytes.
const GIB: u64 = 1 << 30;
/// Alignment of every region in bytes.
const PAGE_BYTES: u64 = 4096;
/// First address above 32 bits.
const FOUR_GIB: u64 = 4 * GIB;

/// Base of the 32-bit PCI window, and end of the RAM below 4 GiB.
const MMIO32_START: u64 = 0xc000_0000;
/// End of the 32-bit PCI window: the I/O APIC.
const MMIO32_END: u64 = 0xfec0_0000;
/// The 32-bit PCI window.
const MMIO32: GpaRange = GpaRange::of_constants(MMIO32_START, MMIO32_END);
/// Size of ECAM for 256 buses: 1 MiB per bus (PCIe r6.0 §7.2.2). ECAM is aligned to its size.
const ECAM_BYTES: u64 = 256 << 20;

/// A range of guest-physical addresses.
pub(crate) type GpaRange = AddressRange<Gpa>;

/// The addresses from `start` up to and without `end`, if there are any.
fn between(start: u64, end: u64) -> Option<GpaRange> {
    GpaRange::between(Gpa::new(start), Gpa::new(end))
}

/// There is no layout for a request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LayoutError {
    #[error(
        "{ram_bytes} bytes of guest memory and a 64-bit PCI window do not fit below {limit:#x}, the end of what CPU and IOMMU can address"
    )]
    TooLarge { ram_bytes: u64, limit: u64 },
    #[error("hole {hole} in guest memory is not page aligned")]
    UnalignedHole { hole: GpaRange },
    #[error(
        "no room for PCIe configuration space below 3 GiB: windows of peers occupy every aligned range"
    )]
    NoEcam,
    #[error("a peer's window must be at its bus address {window}, where {what} is")]
    Fixed {
        window: GpaRange,
        what: &'static str,
    },
    #[error(
        "a peer's window must be at its bus address {window}, but CPU and IOMMU cannot use addresses from {limit:#x} on
       leave p2p off, or have the host's firmware put BARs below that"
    )]
    OutOfReach { window: GpaRange, limit: u64 },
}

/// Parameters of a layout.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LayoutRequest<'a> {
    /// Guest memory in bytes, whole pages.
    pub(crate) ram_bytes: u64,
    /// End of the usable addresses in bytes.
    pub(crate) limit: u64,
    /// Ranges that must stay unused by RAM and movable windows, page aligned, in any order: ranges that the IOMMU
    /// cannot translate, and ranges that a switch of the host routes elsewhere.
    pub(crate) holes: &'a [GpaRange],
    /// PCI windows at fixed addresses, in any order. They may lie in holes.
    pub(crate) fixed: &'a [GpaRange],
}

/// Guest-physical address map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Layout {
    /// RAM regions in ascending order; no two are adjacent.
    pub(crate) ram: Vec<GpaRange>,
    /// Free parts of the 32-bit PCI window.
    pub(crate) mmio32: Vec<GpaRange>,
    /// PCIe configuration space.
    pub(crate) ecam: GpaRange,
    /// Free 64-bit PCI window.
    pub(crate) mmio64: GpaRange,
    /// Ranges that the host bridge forwards: all PCI windows, fixed ones included, ascending and disjoint.
    pub(crate) pci: Vec<GpaRange>,
}

impl Layout {
    /// Lays out the address space.
    pub(crate) fn new(request: &LayoutRequest<'_>) -> Result<Self, LayoutError> {
        let LayoutRequest {
            ram_bytes,
            limit,
            holes,
            fixed,
        } = *request;
        check_fixed(fixed, limit)?;
        let too_large = LayoutError::TooLarge { ram_bytes, limit };
        let ecam = place_ecam(fixed).ok_or(LayoutError::NoEcam)?;
        let taken: Vec<GpaRange> = holes.iter().chain(fixed).copied().collect();

        let room = [
            between(0, ecam.start().value().min(limit)),
            between(ecam.end().value(), MMIO32_START.min(limit)),
            between(FOUR_GIB, limit),
        ];
        let room: Vec<GpaRange> = room.into_iter().flatten().collect();
        let (ram, missing_bytes) = fill(&subtract(&room, &taken)?, ram_bytes);
        if missing_bytes > 0 {
            return Err(too_large);
        }
        let mmio32 = subtract(&[MMIO32], &taken)?;
        let ram_end = ram.last().map_or(0, |region| region.end().value());
        let above: Vec<GpaRange> = between(ram_end.max(FOUR_GIB), limit).into_iter().collect();
        let mmio64 = subtract(&above, &taken)?
            .into_iter()
            .filter_map(|area| {
                let start = area.start().value().checked_next_multiple_of(GIB)?;
                between(start, area.end().value())
            })
            .max_by_key(GpaRange::len_bytes)
            .ok_or(too_large)?;
        let windows = [MMIO32, mmio64];
        Ok(Self {
            ram,
            mmio32,
            ecam,
            mmio64,
            pci: union(windows.iter().chain(fixed)),
        })
    }
}

/// Checks that fixed windows are at addresses where a PCI window is possible.
fn check_fixed(fixed: &[GpaRange], limit: u64) -> Result<(), LayoutError> {
    let forbidden = [
        (GpaRange::of_constants(0, 0x10_0000), "the first MiB of RAM"),
        (
            GpaRange::of_constants(MMIO32_END, FOUR_GIB),
            "the interrupt controllers",
        ),
    ];
    for window in fixed {
        if window.end().value() > limit {
            return Err(LayoutError::OutOfReach {
                window: *window,
                limit,
            });
        }
        for (range, what) in forbidden {
            if range.intersect(window).is_some() {
                return Err(LayoutError::Fixed {
                    window: *window,
                    what,
                });
            }
        }
    }
    Ok(())
}

/// The highest aligned range below the 32-bit PCI window that overlaps no fixed window. Address 0 is left to RAM.
fn place_ecam(fixed: &[GpaRange]) -> Option<GpaRange> {
    let candidates = (1..MMIO32_START / ECAM_BYTES).rev();
    candidates
        .filter_map(|n| between(n * ECAM_BYTES, (n + 1) * ECAM_BYTES))
        .find(|ecam| fixed.iter().all(|w| w.intersect(ecam).is_none()))
}

/// The union of the ranges, ascending; overlapping and adjacent ranges are merged.
fn union<'a>(ranges: impl Iterator<Item = &'a GpaRange>) -> Vec<GpaRange> {
    let mut sorted: Vec<GpaRange> = ranges.copied().collect();
    sorted.sort_unstable();
    let mut merged: Vec<GpaRange> = Vec::new();
    for range in sorted {
        let joined = merged.last().and_then(|last| {
            let touches = range.start() <= last.end();
            GpaRange::between(last.start(), last.end().max(range.end())).filter(|_| touches)
        });
        match (merged.last_mut(), joined) {
            (Some(last), Some(joined)) => *last = joined,
            _ => merged.push(range),
        }
    }
    merged
}

/// The parts of `room` outside of `holes`, ascending.
fn subtract(room: &[GpaRange], holes: &[GpaRange]) -> Result<Vec<GpaRange>, LayoutError> {
    let mut holes = holes.to_vec();
    holes.sort_unstable();
    let mut free = Vec::new();
    for area in room {
        let mut start = area.start();
        for hole in &holes {
            let bounds = [hole.start(), hole.end()];
            if bounds.iter().any(|at| at.value() % PAGE_BYTES != 0) {
                return Err(LayoutError::UnalignedHole { hole: *hole });
            }
            if let Some(cut) = hole.intersect(area) {
                free.extend(GpaRange::between(start, cut.start()));
                start = start.max(cut.end());
            }
        }
        free.extend(GpaRange::between(start, area.end()));
    }
    Ok(free)
}

/// Takes `bytes` from the start of `free`. The second value is the number of bytes that did not fit.
fn fill(free: &[GpaRange], mut bytes: u64) -> (Vec<GpaRange>, u64) {
    let mut taken = Vec::new();
    for area in free {
        let len = area.len_bytes().min(bytes);
        if let Some(range) = GpaRange::new(area.start(), len) {
            taken.push(range);
            bytes -= len;
        }
    }
    (taken, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn layout(ram_bytes: u64, address_bits: u8, ram_holes: &[GpaRange]) -> Layout {
        Layout::new(&LayoutRequest {
            ram_bytes,
            limit: 1 << address_bits,
            holes: ram_holes,
            fixed: &[],
        })
        .unwrap()
    }

    fn ram_bytes(layout: &Layout) -> u64 {
        layout.ram.iter().map(GpaRange::len_bytes).sum()
    }

    #[test]
    fn small_memory_is_one_region_and_the_64_bit_window_starts_at_4_gib() {
        let layout = layout(512 * MIB, 40, &[]);
        assert_eq!(layout.ram, [GpaRange::of_constants(0, 512 * MIB)]);
        assert_eq!(layout.mmio64, GpaRange::of_constants(FOUR_GIB, 1 << 40));
    }

    #[test]
    fn memory_beyond_ecam_continues_at_4_gib() {
        let layout = layout(3500 * MIB, 40, &[]);
        assert_eq!(
            layout.ram,
            [
                GpaRange::of_constants(0, 0xb000_0000),
                GpaRange::of_constants(FOUR_GIB, FOUR_GIB + 684 * MIB)
            ]
        );
        assert_eq!(layout.mmio64, GpaRange::of_constants(5 * GIB, 1 << 40));
    }

    #[test]
    fn windows_and_memory_never_overlap() {
        for size in [MIB, 128 * MIB, 3 * GIB, 3500 * MIB, 5 * GIB, 100 * GIB] {
            let layout = layout(size, 39, &[]);
            let mut all = layout.ram.clone();
            all.extend(&layout.mmio32);
            all.extend([layout.ecam, layout.mmio64]);
            for (index, a) in all.iter().enumerate() {
                for b in all.iter().skip(index + 1) {
                    assert_eq!(a.intersect(b), None, "{a} and {b} for {size}");
                }
            }
            assert_eq!(ram_bytes(&layout), size);
        }
    }

    #[test]
    fn holes_split_memory_and_do_not_change_its_size() {
        let holes = [
            GpaRange::of_constants(GIB, GIB + 256 * MIB),
            GpaRange::of_constants(256 * MIB, 512 * MIB),
            GpaRange::of_constants(400 * MIB, 600 * MIB),
            GpaRange::of_constants(FOUR_GIB - 18 * MIB, FOUR_GIB + MIB),
        ];
        let layout = layout(3 * GIB, 40, &holes);
        assert_eq!(ram_bytes(&layout), 3 * GIB);
        for region in &layout.ram {
            for hole in &holes {
                assert_eq!(region.intersect(hole), None, "{region} and {hole}");
            }
        }
        assert_eq!(layout.ram.len(), 4);
    }

    #[test]
    fn memory_beyond_the_address_space_is_refused() {
        let request = LayoutRequest {
            ram_bytes: 600 * GIB,
            limit: 1 << 39,
            holes: &[],
            fixed: &[],
        };
        assert_eq!(
            Layout::new(&request),
            Err(LayoutError::TooLarge {
                ram_bytes: 600 * GIB,
                limit: 1 << 39
            })
        );
    }

    #[test]
    fn memory_that_leaves_no_64_bit_window_is_refused() {
        let request = LayoutRequest {
            ram_bytes: 511 * GIB,
            limit: 1 << 39,
            holes: &[],
            fixed: &[],
        };
        assert!(matches!(
            Layout::new(&request),
            Err(LayoutError::TooLarge { .. })
        ));
    }

    #[test]
    fn the_64_bit_window_is_the_largest_space_that_is_left() {
        let holes = [
            GpaRange::of_constants(64 * GIB, 65 * GIB),
            GpaRange::of_constants(500 * GIB, 501 * GIB),
        ];
        let layout = layout(GIB, 39, &holes);
        assert_eq!(layout.mmio64, GpaRange::of_constants(65 * GIB, 500 * GIB));
    }

    #[test]
    fn holes_are_left_out_of_the_32_bit_window() {
        let hole = GpaRange::of_constants(MMIO32_START + MIB, MMIO32_START + 2 * MIB);
        let layout = layout(GIB, 39, &[hole]);
        let expected = [
            GpaRange::between(MMIO32.start(), hole.start()).unwrap(),
            GpaRange::between(hole.end(), MMIO32.end()).unwrap(),
        ];
        assert_eq!(layout.mmio32, expected);
        assert_eq!(layout.pci[0], MMIO32);
    }

    fn with_fixed(fixed: &[GpaRange]) -> Result<Layout, LayoutError> {
        Layout::new(&LayoutRequest {
            ram_bytes: 8 * GIB,
            limit: 1 << 40,
            holes: &[],
            fixed,
        })
    }

    #[test]
    fn memory_and_ecam_do_not_overlap_fixed_windows() {
        let fixed = [
            GpaRange::of_constants(0x9000_0000, 0x9010_0000),
            GpaRange::of_constants(0xb800_0000, 0xb900_0000),
            GpaRange::of_constants(6 * GIB, 7 * GIB),
            GpaRange::of_constants(768 * GIB, 769 * GIB),
        ];
        let layout = with_fixed(&fixed).unwrap();
        assert_eq!(layout.ecam.start().value(), 0xa000_0000);
        let ram = layout.ram.iter().chain([&layout.ecam, &layout.mmio64]);
        for region in ram.chain(&layout.mmio32) {
            for window in &fixed {
                assert_eq!(region.intersect(window), None, "{region} {window}");
            }
        }
        assert_eq!(ram_bytes(&layout), 8 * GIB);
        for window in &fixed {
            let forwarded = |pci: &GpaRange| pci.contains(window);
            assert!(layout.pci.iter().any(forwarded), "{window}");
        }
    }

    #[test]
    fn a_fixed_window_in_a_forbidden_range_is_refused() {
        for (start, what) in [
            (0, "RAM"),
            (0xfee0_0000, "interrupt"),
            (1 << 40, "0x10000000000 on"),
        ] {
            let error = with_fixed(&[GpaRange::of_constants(start, start + MIB)]).unwrap_err();
            assert!(error.to_string().contains(what), "{error}");
            assert!(
                error.to_string().contains(&format!("{start:#x}..")),
                "{error}"
            );
        }
    }

    #[test]
    fn hole_that_is_not_page_aligned_is_refused() {
        let request = LayoutRequest {
            ram_bytes: GIB,
            limit: 1 << 39,
            holes: &[GpaRange::of_constants(0x1000, 0x1800)],
            fixed: &[],
        };
        assert!(matches!(
            Layout::new(&request),
            Err(LayoutError::UnalignedHole { .. })
        ));
    }
}
