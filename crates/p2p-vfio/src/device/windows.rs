//! Which parts of a device's BARs are visible where: to the guest and to the peers.

use std::io;
use std::sync::Arc;

use iommu_group::Sbdf;
use thiserror::Error;

use crate::address::{Address, AddressRange, Gpa, Iova};
use crate::dma::{DmaBackend, DmaError};
use crate::memory::HostMemory;
use crate::pci::{Mappable, RegionInfo};
use crate::vmm::{MemorySlots, SlotId};

/// The unit in which KVM and the IOMMU map, in bytes.
const PAGE: u64 = 4096;

/// Why a window could not be opened or closed.
#[derive(Debug, Error)]
pub enum WindowError {
    /// The guest cannot have it.
    #[error("cannot show BAR {bar} of {sbdf} to the guest at {gpa}: {error}")]
    Show {
        /// The device.
        sbdf: Sbdf,
        /// Its BAR.
        bar: u8,
        /// Where.
        gpa: Gpa,
        /// What the hypervisor said.
        error: io::Error,
    },
    /// The guest still has it.
    #[error("cannot take BAR {bar} of {sbdf} from the guest: {error}")]
    Hide {
        /// The device.
        sbdf: Sbdf,
        /// Its BAR.
        bar: u8,
        /// What the hypervisor said.
        error: io::Error,
    },
    /// The peers cannot have it, or still do.
    #[error("BAR {bar} of {sbdf} and its peers: {error}")]
    Peers {
        /// The device.
        sbdf: Sbdf,
        /// Its BAR.
        bar: u8,
        /// What the IOMMU context said.
        error: DmaError,
    },
}

/// A part of a BAR that is mapped in this process, and where it is visible now.
struct Area {
    bar: u8,
    /// Bytes from the start of the BAR.
    offset: u64,
    memory: HostMemory,
    slot: Option<(Gpa, SlotId)>,
    peers: Option<AddressRange<Iova>>,
}

/// All mappable areas of one device.
pub(super) struct Windows {
    sbdf: Sbdf,
    areas: Vec<Area>,
    slots: Arc<dyn MemorySlots>,
    /// The P2P domain; `None` for a device outside of any.
    domain: Option<Arc<dyn DmaBackend>>,
}

impl Windows {
    pub(super) fn new(
        sbdf: Sbdf,
        slots: Arc<dyn MemorySlots>,
        domain: Option<Arc<dyn DmaBackend>>,
    ) -> Self {
        Self {
            sbdf,
            areas: Vec::new(),
            slots,
            domain,
        }
    }

    /// Adds an area of a BAR; it is visible nowhere yet.
    pub(super) fn add(&mut self, bar: u8, offset: u64, memory: HostMemory) {
        self.areas.push(Area {
            bar,
            offset,
            memory,
            slot: None,
            peers: None,
        });
    }

    /// Makes every area visible exactly where `bar_at` says its BAR is, nowhere if that is `None`.
    ///
    /// Windows are closed before others are opened, so that BARs can trade places. The first error
    /// is returned, after all areas were seen to: one that failed is visible to nobody new.
    pub(super) fn place(&mut self, bar_at: impl Fn(u8) -> Option<Gpa>) -> Result<(), WindowError> {
        let mut result = Ok(());
        let goals: Vec<Option<Gpa>> = self
            .areas
            .iter()
            .map(|area| bar_at(area.bar).map(|gpa| Gpa::new(gpa.value() + area.offset)))
            .collect();
        for (area, goal) in self.areas.iter_mut().zip(&goals) {
            if area.slot.map(|(gpa, _)| gpa) != *goal {
                let closed = area.close(self.sbdf, &*self.slots, self.domain.as_deref());
                result = result.and(closed);
            }
        }
        for (area, goal) in self.areas.iter_mut().zip(goals) {
            if let (Some(gpa), None) = (goal, area.slot) {
                let opened = area.open(gpa, self.sbdf, &*self.slots, self.domain.as_deref());
                result = result.and(opened);
            }
        }
        result
    }
}

impl Area {
    /// Shows the area to the peers, then to the guest; to nobody if either fails.
    fn open(
        &mut self,
        gpa: Gpa,
        sbdf: Sbdf,
        slots: &dyn MemorySlots,
        domain: Option<&dyn DmaBackend>,
    ) -> Result<(), WindowError> {
        let bar = self.bar;
        if self.peers.is_some() {
            // A range that the IOMMU would not let go of: nothing new on top of it.
            self.close(sbdf, slots, domain)?;
        }
        if let Some(domain) = domain {
            let range = domain
                .map(Iova::of_guest(gpa), self.memory.clone())
                .map_err(|error| WindowError::Peers { sbdf, bar, error })?;
            self.peers = Some(range);
        }
        match slots.add(gpa, self.memory.clone()) {
            Ok(slot) => {
                self.slot = Some((gpa, slot));
                Ok(())
            }
            Err(error) => {
                if let Err(undo) = self.close(sbdf, slots, domain) {
                    log::error!("while undoing: {undo}");
                }
                Err(WindowError::Show {
                    sbdf,
                    bar,
                    gpa,
                    error,
                })
            }
        }
    }

    /// Takes the area from the peers, then from the guest.
    fn close(
        &mut self,
        sbdf: Sbdf,
        slots: &dyn MemorySlots,
        domain: Option<&dyn DmaBackend>,
    ) -> Result<(), WindowError> {
        let bar = self.bar;
        if let (Some(range), Some(domain)) = (self.peers, domain) {
            domain
                .unmap(range)
                .map_err(|error| WindowError::Peers { sbdf, bar, error })?;
            self.peers = None;
        }
        if let Some((_, slot)) = self.slot {
            slots
                .remove(slot)
                .map_err(|error| WindowError::Hide { sbdf, bar, error })?;
            self.slot = None;
        }
        Ok(())
    }
}

impl Drop for Windows {
    fn drop(&mut self) {
        if let Err(error) = self.place(|_| None) {
            log::error!("{error}");
        }
    }
}

/// The parts of a region to map: what VFIO allows, in whole pages, without the pages that hold
/// `traps` (MSI-X structures, which the VMM emulates), as (offset, length) in bytes.
pub(super) fn mappable_areas(info: &RegionInfo, traps: &[(u64, u64)]) -> Vec<(u64, u64)> {
    let allowed = match &info.mappable {
        Mappable::Nothing => return Vec::new(),
        Mappable::AllButMsix if !traps.is_empty() => return Vec::new(),
        Mappable::Whole | Mappable::AllButMsix => vec![(0, info.size_bytes)],
        Mappable::Areas(areas) => areas.clone(),
    };
    let mut pages: Vec<(u64, u64)> = allowed
        .into_iter()
        .filter_map(|(offset, len)| {
            let end = offset.saturating_add(len).min(info.size_bytes);
            Some((offset.checked_next_multiple_of(PAGE)?, end / PAGE * PAGE))
        })
        .collect();
    for (offset, len) in traps {
        let hole = (
            offset / PAGE * PAGE,
            offset.saturating_add(*len).div_ceil(PAGE) * PAGE,
        );
        pages = pages
            .into_iter()
            .flat_map(|(start, end)| [(start, end.min(hole.0)), (start.max(hole.1), end)])
            .filter(|(start, end)| start < end)
            .collect();
    }
    pages.retain(|(start, end)| start < end);
    pages
        .iter()
        .map(|(start, end)| (*start, end - start))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(size_bytes: u64) -> RegionInfo {
        RegionInfo {
            size_bytes,
            mappable: Mappable::Whole,
        }
    }

    #[test]
    fn a_plain_bar_is_mapped_whole() {
        assert_eq!(mappable_areas(&whole(1 << 20), &[]), [(0, 1 << 20)]);
    }

    #[test]
    fn pages_with_msix_structures_are_left_out() {
        let areas = mappable_areas(&whole(0x4000), &[(0x2000, 0x410), (0x3000, 8)]);
        assert_eq!(areas, [(0, 0x2000)]);
    }

    #[test]
    fn structures_that_are_not_page_aligned_take_their_pages_with_them() {
        let areas = mappable_areas(&whole(0x8000), &[(0x2ff8, 0x10)]);
        assert_eq!(areas, [(0, 0x2000), (0x4000, 0x4000)]);
    }

    #[test]
    fn less_than_a_page_is_not_mapped() {
        assert_eq!(mappable_areas(&whole(256), &[]), []);
    }

    #[test]
    fn areas_of_the_kernel_are_taken_in_whole_pages() {
        let info = RegionInfo {
            size_bytes: 0x10000,
            mappable: Mappable::Areas(vec![(0x800, 0x2800), (0xf000, 0x8000)]),
        };
        assert_eq!(
            mappable_areas(&info, &[]),
            [(0x1000, 0x2000), (0xf000, 0x1000)]
        );
    }

    #[test]
    fn an_msix_bar_that_may_not_be_mapped_is_not() {
        let info = RegionInfo {
            size_bytes: 0x4000,
            mappable: Mappable::AllButMsix,
        };
        assert_eq!(mappable_areas(&info, &[(0x2000, 16)]), []);
        assert_eq!(mappable_areas(&info, &[]), [(0, 0x4000)]);
    }
}
