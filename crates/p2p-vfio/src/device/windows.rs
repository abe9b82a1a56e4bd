//! Where a device's BARs are visible: to the guest and to the peers.
//!
//! A BAR is visible to both or to nobody, with all its areas or with none, and in a range that this
//! device alone has claimed. [`Windows::place`] brings every BAR from wherever it is to where it shall
//! be; a BAR that cannot go there is nowhere, and the next call tries again.

use std::io;
use std::sync::Arc;

use iommu_group::{Address, AddressRange, Gpa, Iova, Sbdf};
use thiserror::Error;

use crate::dma::DmaError;
use crate::memory::HostMemory;
use crate::peers::{PeerBars, PublishedArea};
use crate::vmm::{MemorySlots, SlotId};

/// Why a window could not be opened or closed.
#[derive(Debug, Error)]
pub enum WindowError {
    /// Somebody else answers there.
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

/// A part of a BAR that is mapped in this process, and by what it is visible now.
struct Area {
    /// Bytes from the start of the BAR.
    offset: u64,
    memory: HostMemory,
    slot: Option<SlotId>,
    /// Published to the members of the domain.
    peers: Option<PublishedArea>,
}

/// One BAR.
struct Window {
    bar: u8,
    areas: Vec<Area>,
    /// What is claimed; areas are visible inside only.
    at: Option<AddressRange<Gpa>>,
    /// Where it could not be put, so that this is told once.
    refused: Option<AddressRange<Gpa>>,
    /// Part of it could not be taken from where it was.
    stuck: bool,
}

/// The surroundings of a window.
struct World {
    sbdf: Sbdf,
    slots: Arc<dyn MemorySlots>,
    /// The table of the P2P domain; `None` for a device outside of any, and for one whose BARs policy hides.
    domain: Option<Arc<PeerBars>>,
    /// The peers have been told to stay out, whatever the guest does.
    revoked: bool,
}

/// All BARs of one device.
pub(super) struct Windows {
    world: World,
    windows: Vec<Window>,
}

impl Windows {
    pub(super) fn new(
        sbdf: Sbdf,
        slots: Arc<dyn MemorySlots>,
        domain: Option<Arc<PeerBars>>,
    ) -> Self {
        Self {
            world: World {
                sbdf,
                slots,
                domain,
                revoked: false,
            },
            windows: Vec::new(),
        }
    }

    /// Adds a BAR with the areas (offset, memory) that are mapped of it; it is visible nowhere yet.
    pub(super) fn add(&mut self, bar: u8, areas: Vec<(u64, HostMemory)>) {
        let area = |(offset, memory)| Area {
            offset,
            memory,
            slot: None,
            peers: None,
        };
        self.windows.push(Window {
            bar,
            areas: areas.into_iter().map(area).collect(),
            at: None,
            refused: None,
            stuck: false,
        });
    }

    /// Puts every BAR where `target` says, nowhere if that is `None`.
    ///
    /// Windows are closed before others are opened, so that BARs can trade places. Returns what went
    /// wrong; a refusal that was told before and still stands is not told again.
    pub(super) fn place(
        &mut self,
        target: impl Fn(u8) -> Option<AddressRange<Gpa>>,
    ) -> Vec<WindowError> {
        let mut errors = Vec::new();
        for window in &mut self.windows {
            let goal = target(window.bar);
            if window.refused != goal {
                window.refused = None;
            }
            let settled = window.at == goal && !window.stuck;
            if window.at.is_some() && !settled {
                errors.extend(window.close(&self.world));
            }
        }
        for window in &mut self.windows {
            let (Some(range), None) = (target(window.bar), window.at) else {
                continue;
            };
            if let Err(error) = window.open(&self.world, range) {
                if window.refused.replace(range).is_none() {
                    errors.push(error);
                }
            } else {
                window.refused = None;
            }
        }
        errors
    }

    /// Takes every BAR from the peers, and keeps it from them until they may have it again. The guest notices nothing.
    /// Returns what went wrong: a BAR that could not be taken is still theirs.
    pub(super) fn set_revoked(&mut self, revoked: bool) -> Vec<WindowError> {
        self.world.revoked = revoked;
        let mut errors = Vec::new();
        for window in &mut self.windows {
            if revoked {
                errors.extend(window.hide_from_peers(&self.world));
            } else if let Some(range) = window.at {
                errors.extend(window.show_to_peers(&self.world, range).err());
            }
        }
        errors
    }

    /// Whether some BAR is not where it should be: [`place`](Self::place) may do better now.
    pub(super) fn is_unsettled(&self) -> bool {
        self.windows.iter().any(|w| w.refused.is_some() || w.stuck)
    }

    /// Where a BAR answers now.
    pub(super) fn live(&self, bar: u8) -> Option<AddressRange<Gpa>> {
        let window = self.windows.iter().find(|window| window.bar == bar)?;
        window.at.filter(|_| !window.stuck)
    }

    /// Where members of the domain that are bus masters reach BARs: the BAR and the part of the address space.
    pub(super) fn peers(&self) -> impl Iterator<Item = (u8, AddressRange<Iova>)> {
        let of = |w: &Window| {
            let bar = w.bar;
            let ranges: Vec<_> = w
                .areas
                .iter()
                .filter_map(|area| Some(area.peers.as_ref()?.range))
                .collect();
            ranges.into_iter().map(move |range| (bar, range))
        };
        self.windows.iter().flat_map(of)
    }
}

impl Window {
    /// Shows the BAR to the peers, then to the guest; to nobody if anything fails.
    fn open(&mut self, world: &World, range: AddressRange<Gpa>) -> Result<(), WindowError> {
        let (sbdf, bar) = (world.sbdf, self.bar);
        let claimed = world.slots.claim(range);
        claimed.map_err(|error| WindowError::Claim {
            sbdf,
            bar,
            range,
            error,
        })?;
        self.at = Some(range);
        let opened = self.show(world, range);
        if opened.is_err() {
            for undo in self.close(world) {
                log::error!("while undoing: {undo}");
            }
        }
        opened
    }

    fn show(&mut self, world: &World, range: AddressRange<Gpa>) -> Result<(), WindowError> {
        let (sbdf, bar) = (world.sbdf, self.bar);
        self.show_to_peers(world, range)?;
        for area in &mut self.areas {
            let gpa = place_of(area, range);
            let slot = world.slots.add(gpa, area.memory.clone());
            let slot = slot.map_err(|error| WindowError::Show {
                sbdf,
                bar,
                gpa,
                error,
            })?;
            area.slot = Some(slot);
        }
        Ok(())
    }

    /// Gives the peers what they do not have yet, if they may have anything.
    fn show_to_peers(
        &mut self,
        world: &World,
        range: AddressRange<Gpa>,
    ) -> Result<(), WindowError> {
        let (sbdf, bar) = (world.sbdf, self.bar);
        let domain = world.domain.as_ref().filter(|_| !world.revoked);
        let Some(domain) = domain else {
            return Ok(());
        };
        for area in self.areas.iter_mut().filter(|area| area.peers.is_none()) {
            let iova = Iova::of_guest(place_of(area, range));
            let published = domain.publish(sbdf, iova, area.memory.clone());
            let published = published.map_err(|error| WindowError::Peers { sbdf, bar, error })?;
            area.peers = Some(published);
        }
        Ok(())
    }

    fn hide_from_peers(&mut self, world: &World) -> Vec<WindowError> {
        let (sbdf, bar) = (world.sbdf, self.bar);
        let mut errors = Vec::new();
        for area in &mut self.areas {
            if let (Some(published), Some(domain)) = (&area.peers, &world.domain) {
                match domain.withdraw(published) {
                    Ok(()) => area.peers = None,
                    Err(error) => errors.push(WindowError::Peers { sbdf, bar, error }),
                }
            }
        }
        errors
    }

    /// Takes the BAR from the peers, then from the guest, as much of it as goes. What could not be
    /// taken keeps its claim, so that nothing else can be put there.
    fn close(&mut self, world: &World) -> Vec<WindowError> {
        let (sbdf, bar) = (world.sbdf, self.bar);
        let mut errors = self.hide_from_peers(world);
        for area in &mut self.areas {
            if let Some(slot) = area.slot {
                match world.slots.remove(slot) {
                    Ok(()) => area.slot = None,
                    Err(error) => errors.push(WindowError::Hide { sbdf, bar, error }),
                }
            }
        }
        self.stuck = !errors.is_empty();
        if !self.stuck
            && let Some(range) = self.at.take()
        {
            world.slots.release(range);
        }
        errors
    }
}

/// Where the guest finds an area of a BAR that is at `range`.
fn place_of(area: &Area, range: AddressRange<Gpa>) -> Gpa {
    Gpa::new(range.start().value() + area.offset)
}

impl Drop for Windows {
    fn drop(&mut self) {
        for error in self.place(|_| None) {
            log::error!("{error}");
        }
    }
}
