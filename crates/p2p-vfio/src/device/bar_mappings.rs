//! Mappings of a device's BARs, for the guest and for the peers.
//!
//! A BAR is mapped for both or for none, with all its areas, in a range that this device alone has claimed.
//! [`BarMappings::place`] moves every BAR to its new range. A BAR whose range is not available is unmapped, and the next
//! call tries again.

use std::io;
use std::sync::Arc;

use iommu_group::{Address, AddressRange, Gpa, Iova, Sbdf};
use thiserror::Error;

use crate::dma::DmaError;
use crate::memory::HostMemory;
use crate::peers::{PeerBars, PublishedArea};
use crate::vmm::{AddressClaims, MemorySlots, SlotId};

/// A BAR could not be mapped or unmapped.
#[derive(Debug, Error)]
pub enum BarMappingError {
    /// Another device has claimed the range.
    #[error("cannot put BAR {bar} of {sbdf} at {range}: {error}")]
    Claim {
        /// The device.
        sbdf: Sbdf,
        /// Its BAR.
        bar: u8,
        /// Where.
        range: AddressRange<Gpa>,
        /// What the VMM said.
        error: io::Error,
    },
    /// No memory slot for the guest.
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
    /// The memory slot could not be removed.
    #[error("cannot take BAR {bar} of {sbdf} from the guest: {error}")]
    Hide {
        /// The device.
        sbdf: Sbdf,
        /// Its BAR.
        bar: u8,
        /// What the hypervisor said.
        error: io::Error,
    },
    /// The BAR could not be mapped or unmapped for peers.
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

/// A part of a BAR that is mapped into this process, with its current mappings.
struct Area {
    /// Bytes from the start of the BAR.
    offset: u64,
    memory: HostMemory,
    slot: Option<SlotId>,
    /// Published to the members of the domain.
    peers: Option<PublishedArea>,
}

/// One BAR.
struct BarMapping {
    bar: u8,
    areas: Vec<Area>,
    /// The claimed range, in which areas are mapped.
    at: Option<AddressRange<Gpa>>,
    /// The range that was not available, so that this is reported once.
    refused: Option<AddressRange<Gpa>>,
    /// Part of it could not be unmapped.
    stuck: bool,
}

/// What all BARs of a device share.
struct MappingEnv {
    sbdf: Sbdf,
    slots: Arc<dyn MemorySlots>,
    claims: Arc<dyn AddressClaims>,
    /// The table of the P2P domain; `None` for a device outside of any, and for one whose BARs policy hides.
    domain: Option<Arc<PeerBars>>,
    /// BARs are not mapped for peers, whatever the guest does.
    revoked: bool,
}

/// All BARs of one device.
pub(super) struct BarMappings {
    env: MappingEnv,
    mappings: Vec<BarMapping>,
}

impl BarMappings {
    pub(super) fn new(
        sbdf: Sbdf,
        slots: Arc<dyn MemorySlots>,
        claims: Arc<dyn AddressClaims>,
        domain: Option<Arc<PeerBars>>,
    ) -> Self {
        Self {
            env: MappingEnv {
                sbdf,
                slots,
                claims,
                domain,
                revoked: false,
            },
            mappings: Vec::new(),
        }
    }

    /// Adds a BAR with its areas (offset, memory). It is not mapped yet.
    pub(super) fn add(&mut self, bar: u8, areas: Vec<(u64, HostMemory)>) {
        let area = |(offset, memory)| Area {
            offset,
            memory,
            slot: None,
            peers: None,
        };
        self.mappings.push(BarMapping {
            bar,
            areas: areas.into_iter().map(area).collect(),
            at: None,
            refused: None,
            stuck: false,
        });
    }

    /// Puts every BAR where `target` says, nowhere if that is `None`.
    ///
    /// BarMappings are closed before others are opened, so that BARs can trade places. Returns what went
    /// wrong; a refusal that was told before and still stands is not told again.
    pub(super) fn place(
        &mut self,
        target: impl Fn(u8) -> Option<AddressRange<Gpa>>,
    ) -> Vec<BarMappingError> {
        let mut errors = Vec::new();
        for window in &mut self.mappings {
            let goal = target(window.bar);
            if window.refused != goal {
                window.refused = None;
            }
            let settled = window.at == goal && !window.stuck;
            if window.at.is_some() && !settled {
                errors.extend(window.close(&self.env));
            }
        }
        for window in &mut self.mappings {
            let (Some(range), None) = (target(window.bar), window.at) else {
                continue;
            };
            if let Err(error) = window.open(&self.env, range) {
                if window.refused.replace(range).is_none() {
                    errors.push(error);
                }
            } else {
                window.refused = None;
            }
        }
        errors
    }

    /// Unmaps every BAR for peers until it is called with `false`. The guest's accesses are not affected. Returns errors:
    /// such a BAR is still mapped.
    pub(super) fn set_revoked(&mut self, revoked: bool) -> Vec<BarMappingError> {
        self.env.revoked = revoked;
        let mut errors = Vec::new();
        for window in &mut self.mappings {
            if revoked {
                errors.extend(window.hide_from_peers(&self.env));
            } else if let Some(range) = window.at {
                errors.extend(window.show_to_peers(&self.env, range).err());
            }
        }
        errors
    }

    /// Whether a BAR is not mapped as requested, so that [`place`](Self::place) should be called again.
    pub(super) fn is_unsettled(&self) -> bool {
        self.mappings.iter().any(|w| w.refused.is_some() || w.stuck)
    }

    /// The range at which a BAR is mapped.
    pub(super) fn live(&self, bar: u8) -> Option<AddressRange<Gpa>> {
        let window = self.mappings.iter().find(|window| window.bar == bar)?;
        window.at.filter(|_| !window.stuck)
    }

    /// Where members of the domain that are bus masters reach BARs: the BAR and the part of the address space.
    pub(super) fn peers(&self) -> impl Iterator<Item = (u8, AddressRange<Iova>)> {
        let of = |w: &BarMapping| {
            let bar = w.bar;
            let ranges: Vec<_> = w
                .areas
                .iter()
                .filter_map(|area| Some(area.peers.as_ref()?.range))
                .collect();
            ranges.into_iter().map(move |range| (bar, range))
        };
        self.mappings.iter().flat_map(of)
    }
}

impl BarMapping {
    /// Maps the BAR for peers, then for the guest; for none if anything fails.
    fn open(&mut self, env: &MappingEnv, range: AddressRange<Gpa>) -> Result<(), BarMappingError> {
        let (sbdf, bar) = (env.sbdf, self.bar);
        let claimed = env.claims.claim(range);
        claimed.map_err(|error| BarMappingError::Claim {
            sbdf,
            bar,
            range,
            error,
        })?;
        self.at = Some(range);
        let opened = self.show(env, range);
        if opened.is_err() {
            for undo in self.close(env) {
                log::error!("while undoing: {undo}");
            }
        }
        opened
    }

    fn show(&mut self, env: &MappingEnv, range: AddressRange<Gpa>) -> Result<(), BarMappingError> {
        let (sbdf, bar) = (env.sbdf, self.bar);
        self.show_to_peers(env, range)?;
        for area in &mut self.areas {
            let gpa = place_of(area, range);
            let slot = env.slots.add(gpa, area.memory.clone());
            let slot = slot.map_err(|error| BarMappingError::Show {
                sbdf,
                bar,
                gpa,
                error,
            })?;
            area.slot = Some(slot);
        }
        Ok(())
    }

    /// Publishes the areas that are not published yet, unless the BAR is hidden or revoked.
    fn show_to_peers(
        &mut self,
        env: &MappingEnv,
        range: AddressRange<Gpa>,
    ) -> Result<(), BarMappingError> {
        let (sbdf, bar) = (env.sbdf, self.bar);
        let domain = env.domain.as_ref().filter(|_| !env.revoked);
        let Some(domain) = domain else {
            return Ok(());
        };
        for area in self.areas.iter_mut().filter(|area| area.peers.is_none()) {
            let iova = Iova::of_guest(place_of(area, range));
            let published = domain.publish(sbdf, iova, area.memory.clone());
            let published =
                published.map_err(|error| BarMappingError::Peers { sbdf, bar, error })?;
            area.peers = Some(published);
        }
        Ok(())
    }

    fn hide_from_peers(&mut self, env: &MappingEnv) -> Vec<BarMappingError> {
        let (sbdf, bar) = (env.sbdf, self.bar);
        let mut errors = Vec::new();
        for area in &mut self.areas {
            if let (Some(published), Some(domain)) = (&area.peers, &env.domain) {
                match domain.withdraw(published) {
                    Ok(()) => area.peers = None,
                    Err(error) => errors.push(BarMappingError::Peers { sbdf, bar, error }),
                }
            }
        }
        errors
    }

    /// Unmaps the BAR for peers, then for the guest, as far as possible. A BAR that is still mapped keeps its claim, so
    /// that no other device can be mapped there.
    fn close(&mut self, env: &MappingEnv) -> Vec<BarMappingError> {
        let (sbdf, bar) = (env.sbdf, self.bar);
        let mut errors = self.hide_from_peers(env);
        for area in &mut self.areas {
            if let Some(slot) = area.slot {
                match env.slots.remove(slot) {
                    Ok(()) => area.slot = None,
                    Err(error) => errors.push(BarMappingError::Hide { sbdf, bar, error }),
                }
            }
        }
        self.stuck = !errors.is_empty();
        if !self.stuck
            && let Some(range) = self.at.take()
        {
            env.claims.release(range);
        }
        errors
    }
}

/// Guest-physical address of an area of a BAR at `range`.
fn place_of(area: &Area, range: AddressRange<Gpa>) -> Gpa {
    Gpa::new(range.start().value() + area.offset)
}

impl Drop for BarMappings {
    fn drop(&mut self) {
        for error in self.place(|_| None) {
            log::error!("{error}");
        }
    }
}
