//! Required address space, for each kind of bridge window.

use iommu_group::{Address, Bar, Gpa};

/// The two kinds of bridge window.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Memory = 0,
    Prefetchable = 1,
}

impl Kind {
    pub(super) fn of(bar: &Bar) -> Self {
        if bar.is_64bit() && bar.prefetchable {
            Self::Prefetchable
        } else {
            Self::Memory
        }
    }

    /// The window that forwards an address.
    pub(super) fn at(gpa: Gpa) -> Self {
        if gpa.value() < 1 << 32 {
            Self::Memory
        } else {
            Self::Prefetchable
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Memory => "32-bit or not prefetchable",
            Self::Prefetchable => "64-bit prefetchable",
        }
    }
}

/// Size and alignment of required address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SizeAlign {
    /// Size in bytes; 0 if nothing is required, [`u64::MAX`] if more than the address space is.
    pub bytes: u64,
    /// Alignment of the start in bytes, a power of two.
    pub align_bytes: u64,
}

impl SizeAlign {
    pub(super) const NOTHING: Self = Self {
        bytes: 0,
        align_bytes: 1,
    };
}

/// The lowest multiple of `align_bytes` that is at least `value`; [`u64::MAX`] if there is none.
pub(super) fn align_up(value: u64, align_bytes: u64) -> u64 {
    value
        .checked_next_multiple_of(align_bytes)
        .unwrap_or(u64::MAX)
}

/// Packs items in the order of decreasing alignment. Returns their offsets, and the total size and alignment.
pub(super) fn pack(items: &[SizeAlign]) -> (Vec<u64>, SizeAlign) {
    let mut order: Vec<usize> = (0..items.len()).collect();
    order.sort_by_key(|at| std::cmp::Reverse(items[*at].align_bytes));
    let mut offsets = vec![0; items.len()];
    let mut total = SizeAlign::NOTHING;
    for at in order {
        let item = items[at];
        let offset = align_up(total.bytes, item.align_bytes);
        offsets[at] = offset;
        total.bytes = offset.saturating_add(item.bytes);
        total.align_bytes = total.align_bytes.max(item.align_bytes);
    }
    (offsets, total)
}
