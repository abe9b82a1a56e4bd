//! The BARs that the members of a P2P domain can reach.
//!
//! A member publishes the areas of its BARs where the guest has placed them. An area is mapped in the
//! domain's IOMMU context while a member other than its owner is a bus master, because only a bus master
//! sends requests (PCI r3.0 §6.2.2). A guest that sizes the BARs of a new device, which turns its memory
//! decode off and on, costs no mapping as long as nobody can use it.
//!
//! Lock order: a device, then the table, then the backend. The table calls no device.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use iommu_group::{AddressRange, Iova, Sbdf};

use crate::dma::{DmaBackend, DmaError};
use crate::memory::HostMemory;

/// The table of one P2P domain. [`DeviceSet`](crate::DeviceSet) keeps one for each of its domains; a VMM with a VFIO
/// stack of its own keeps it over its own [`DmaBackend`].
pub struct PeerBars {
    backend: Arc<dyn DmaBackend>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// What the IOMMU translates, ascending.
    usable: Vec<AddressRange<Iova>>,
    /// Members that are bus masters.
    initiators: BTreeSet<Sbdf>,
    published: BTreeMap<u64, Published>,
    next: u64,
}

/// An area of a BAR.
struct Published {
    owner: Sbdf,
    range: AddressRange<Iova>,
    memory: HostMemory,
    mapped: bool,
}

/// A published area, until it is withdrawn. Dropping it withdraws nothing.
#[derive(Debug, PartialEq, Eq)]
pub struct PublishedArea {
    id: u64,
    /// Where members reach it, in I/O addresses.
    pub range: AddressRange<Iova>,
}

impl PeerBars {
    /// A table without areas and without initiators.
    pub fn new(backend: Arc<dyn DmaBackend>) -> Self {
        Self {
            backend,
            state: Mutex::default(),
        }
    }

    /// Sets the I/O addresses that the IOMMU translates, ascending. A device that joins may reduce them.
    pub fn set_usable(&self, ranges: Vec<AddressRange<Iova>>) {
        self.state().usable = ranges;
    }

    /// Publishes an area of a BAR of `owner`, which decodes memory. It is mapped now if another member is a bus master,
    /// and otherwise when one becomes it.
    ///
    /// # Errors
    /// [`DmaError::BadRange`]; [`DmaError::Map`] with `EINVAL` outside what the IOMMU translates, or from the kernel.
    /// Nothing is published then.
    pub fn publish(
        &self,
        owner: Sbdf,
        iova: Iova,
        memory: HostMemory,
    ) -> Result<PublishedArea, DmaError> {
        let len_bytes = memory.len_bytes();
        let range = AddressRange::new(iova, len_bytes as u64)
            .ok_or(DmaError::BadRange { iova, len_bytes })?;
        let mut state = self.state();
        if !state.usable.iter().any(|usable| usable.contains(&range)) {
            let error = io::Error::from_raw_os_error(libc::EINVAL);
            return Err(DmaError::Map { range, error });
        }
        let mapped = state.has_initiator_besides(owner);
        if mapped {
            self.backend.map(iova, memory.clone())?;
        }
        let id = state.next;
        state.next = state.next.wrapping_add(1);
        let area = Published {
            owner,
            range,
            memory,
            mapped,
        };
        state.published.insert(id, area);
        Ok(PublishedArea { id, range })
    }

    /// Withdraws an area. No member reaches it from then on.
    ///
    /// # Errors
    /// Those of [`DmaBackend::unmap`]; the area is still published then.
    pub fn withdraw(&self, area: &PublishedArea) -> Result<(), DmaError> {
        let mut state = self.state();
        let found = state.published.get(&area.id);
        let found = found.ok_or(DmaError::NotMapped(area.range))?;
        if found.mapped {
            self.backend.unmap(found.range)?;
        }
        state.published.remove(&area.id);
        Ok(())
    }

    /// Maps what the other members have published, before `member` becomes a bus master.
    ///
    /// # Errors
    /// Those of [`DmaBackend::map`]; the member is no initiator then, and what this call mapped is unmapped.
    pub fn add_initiator(&self, member: Sbdf) -> Result<(), DmaError> {
        let mut state = self.state();
        if !state.initiators.insert(member) {
            return Ok(());
        }
        let others = state.published.values_mut();
        for area in others.filter(|area| area.owner != member && !area.mapped) {
            if let Err(error) = self.backend.map(area.range.start(), area.memory.clone()) {
                for undo in self.remove(&mut state, member) {
                    log::error!("while undoing: {undo}");
                }
                return Err(error);
            }
            area.mapped = true;
        }
        Ok(())
    }

    /// Unmaps what no other member can use, after `member` has stopped to be a bus master. Returns what went wrong: such
    /// an area stays mapped until its owner withdraws it or the next initiator leaves.
    pub fn remove_initiator(&self, member: Sbdf) -> Vec<DmaError> {
        self.remove(&mut self.state(), member)
    }

    fn remove(&self, state: &mut State, member: Sbdf) -> Vec<DmaError> {
        state.initiators.remove(&member);
        let initiators = &state.initiators;
        let mut errors = Vec::new();
        for area in state.published.values_mut() {
            let used = initiators.iter().any(|initiator| *initiator != area.owner);
            if area.mapped && !used {
                match self.backend.unmap(area.range) {
                    Ok(()) => area.mapped = false,
                    Err(error) => errors.push(error),
                }
            }
        }
        errors
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn has_initiator_besides(&self, owner: Sbdf) -> bool {
        self.initiators.iter().any(|member| *member != owner)
    }
}
