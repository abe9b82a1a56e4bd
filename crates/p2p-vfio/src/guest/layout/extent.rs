//! Needs for addresses, by the kind of bridge window that forwards them.

use crate::device::BarInfo;
use iommu_group::{Address, Gpa};

/// The two kinds of bridge window.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Memory = 0,
    Prefetchable = 1,
}

impl Kind {
    pub(super) fn of(bar: &BarInfo) -> Self {
        if bar.is_64bit && bar.prefetchable {
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

/// A need for addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) bytes: u64,
    pub(super) align_bytes: u64,
}

/// Offsets for items one after the other, those with the largest alignment first, and what all need.
pub(super) fn pack(items: &[Extent]) -> (Vec<u64>, Extent) {
    let mut order: Vec<usize> = (0..items.len()).collect();
    order.sort_by_key(|at| std::cmp::Reverse(items[*at].align_bytes));
    let mut offsets = vec![0; items.len()];
    let mut total = Extent {
        bytes: 0,
        align_bytes: 1,
    };
    for at in order {
        let item = items[at];
        let offset = total.bytes.next_multiple_of(item.align_bytes);
        offsets[at] = offset;
        total.bytes = offset.saturating_add(item.bytes);
        total.align_bytes = total.align_bytes.max(item.align_bytes);
    }
    (offsets, total)
}
