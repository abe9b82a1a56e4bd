//! An assigned device: a host function as the guest sees it.
//!
//! ```text
//!  guest ──config──▶ overlay, BARs, MSI, MSI-X ──rest──▶ VFIO
//!        ──MMIO────▶ memory slot (whole pages)  or  read/write through VFIO
//!  peer  ──DMA─────▶ IOMMU context of the P2P domain ──▶ BAR
//! ```
//! BAR windows follow what the guest has programmed: each configuration write first changes the
//! registers, then [`Windows::place`](windows::Windows) makes the world agree with them. A BAR has no
//! window anywhere while memory decode is off, the function sleeps or is being reset, the bridges above
//! do not let its address through, or somebody else answers there: the registers keep what the guest
//! wrote, as hardware's do, and the VMM is told ([`DeviceEvent`]).

mod areas;
mod attach;
mod bars;
mod capability;
mod clique;
mod config;
mod controls;
mod error;
mod event;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod host;
mod interrupts;
mod mmio;
mod msi;
mod msix;
mod notices;
mod overlay;
mod windows;

#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;

use guest_topology::FixedBars;
use iommu_group::{AddressRange, Bar, Gpa, Iova, Sbdf};
use vmm_sys_util::eventfd::EventFd;

use crate::descriptors::DescriptorLimit;
use crate::pci::{Notice, PciBackend};
use crate::peers::PeerBars;
use crate::vmm::{EventSink, IntxLine, MemorySlots, MsiRouter};

use bars::Bars;
pub use clique::Clique;
use controls::Controls;
pub use error::{AttachError, DetachError};
pub use event::DeviceEvent;
pub use host::HostDevice;
use interrupts::Interrupts;
use msi::Msi;
use msix::Msix;
use notices::Notices;
use overlay::Overlay;
pub use windows::WindowError;
use windows::Windows;

/// What a VMM gives to an assigned device.
pub struct DeviceParams {
    /// Where its BARs are shown to the guest.
    pub slots: Arc<dyn MemorySlots>,
    /// Where its message-signalled interrupts go.
    pub msi: Arc<dyn MsiRouter>,
    /// Which descriptors its vectors may take: the guest decides how many it enables.
    pub vector_fds: DescriptorLimit,
    /// Where its pin INTA leads; `None` hides the pin.
    pub intx: Option<Arc<dyn IntxLine>>,
    /// Who is told what happens to it.
    pub events: Arc<dyn EventSink>,
    /// Guest-physical ranges that lead to it: a BAR elsewhere is not decoded.
    pub mmio: Vec<AddressRange<Gpa>>,
    /// What an NVIDIA GPU in a P2P domain says to its driver in the guest: GPUs of one number may use
    /// peer-to-peer. Other devices ignore it.
    pub clique: Option<Clique>,
}

/// A host function that a guest owns.
///
/// Fields are in the order of their release: windows first, so that nobody reaches the device when
/// it goes, then interrupts, then the device, which holds its context.
pub struct AssignedDevice {
    sbdf: Sbdf,
    windows: Windows,
    /// The BARs of its P2P domain, which it reaches as a bus master.
    domain: Option<Arc<PeerBars>>,
    fixed_bars: FixedBars,
    interrupts: Interrupts,
    notices: Notices,
    events: Arc<dyn EventSink>,
    command: [u8; 2],
    /// 0 is D0, 3 is D3hot.
    power: u8,
    /// Given up: the guest finds nothing any more.
    stopped: bool,
    detached: bool,
    has_line: bool,
    bars: Bars,
    msi: Option<Msi>,
    msix: Option<Msix>,
    controls: Controls,
    overlay: Overlay,
    reach: Vec<AddressRange<Gpa>>,
    device: Box<dyn PciBackend>,
}

impl AssignedDevice {
    /// Its address on the host.
    pub fn sbdf(&self) -> Sbdf {
        self.sbdf
    }

    /// The memory BARs that need an address.
    pub fn bars(&self) -> &[Bar] {
        self.bars.infos()
    }

    /// Where each BAR answers to the guest now; one that does not is left out.
    pub fn live_bars(&self) -> impl Iterator<Item = (&Bar, AddressRange<Gpa>)> {
        let infos = self.bars.infos().iter();
        infos.filter_map(|info| Some((info, self.windows.live(info.index)?)))
    }

    /// Where its peers reach it, as long as they are bus masters: the BAR, and a part of the domain's I/O addresses.
    pub fn peer_windows(&self) -> impl Iterator<Item = (u8, AddressRange<Iova>)> {
        self.windows.peers()
    }

    /// Takes the windows from its peers, wherever the guest puts them, or lets the peers have them again. The guest
    /// notices nothing: what peers try meanwhile faults in the IOMMU.
    ///
    /// # Errors
    /// [`WindowError`] if a window could not be closed or opened; the others are as wanted.
    pub fn set_revoked(&mut self, revoked: bool) -> Result<(), WindowError> {
        let errors = self.windows.set_revoked(revoked);
        errors.into_iter().next().map_or(Ok(()), Err)
    }

    /// Gives a BAR its address, before the guest looks.
    ///
    /// # Errors
    /// [`WindowError`] if memory decode is on and the window could not follow.
    pub fn place_bar(&mut self, info: &Bar, gpa: Gpa) -> Result<(), WindowError> {
        self.bars.set(info, gpa);
        self.try_place().into_iter().next().map_or(Ok(()), Err)
    }

    /// Turns memory decode on, so that the guest finds its BARs mapped and peers reach them.
    ///
    /// # Errors
    /// [`AttachError`] if the device does not take it, or a BAR is where no bridge leads or its window
    /// could not be opened. Memory decode and every window is off then.
    pub fn enable_memory(&mut self) -> Result<(), AttachError> {
        let sbdf = self.sbdf;
        let [low, high] = self.command;
        let on = [low | config::MEMORY_SPACE, high];
        self.write_raw_command(on)
            .map_err(|error| AttachError::Config { sbdf, error })?;
        self.command = on;
        let stuck = self.try_place().into_iter().next();
        let Some(error) = stuck.map(AttachError::Window).or_else(|| self.beyond()) else {
            return Ok(());
        };
        self.write_command([low, high]);
        Err(error)
    }

    /// A BAR that is not decoded although memory decode is on.
    fn beyond(&self) -> Option<AttachError> {
        let mut infos = self.bars.infos().iter();
        let info = infos.find(|info| self.windows.live(info.index).is_none())?;
        Some(AttachError::Beyond {
            sbdf: self.sbdf,
            bar: info.index,
            range: self.bars.range(info)?,
        })
    }

    /// Says which guest-physical ranges lead to the device now: those that every bridge above it lets
    /// through. To be called when the guest has reprogrammed one of them.
    pub fn set_reach(&mut self, ranges: &[AddressRange<Gpa>]) {
        if self.reach != ranges {
            self.reach = ranges.to_vec();
            self.place_windows();
        }
    }

    /// Tries again what was refused before. To be called when another device may have made room.
    pub fn settle(&mut self) {
        if self.windows.is_unsettled() {
            self.place_windows();
        }
    }

    /// The eventfds that are signalled when the host has something to tell of the device; a VMM waits
    /// for them and calls [`heed`](Self::heed).
    pub fn notices(&self) -> impl Iterator<Item = &EventFd> {
        self.notices.events()
    }

    /// Takes what the host has told, acts on it and passes it on to the event sink.
    pub fn heed(&mut self) {
        for notice in self.notices.take() {
            match notice {
                Notice::Error => self.stop(DeviceEvent::Error),
                Notice::Request => self.tell(DeviceEvent::Requested),
            }
        }
    }

    /// Resets the function and nothing else, and brings the guest's view of it to the state after
    /// power-on: nothing decoded, BARs at 0, no interrupts. Peers lose their windows before the device
    /// loses its state; they have them back when the guest has programmed it again.
    ///
    /// # Errors
    /// The errno of VFIO; `ENOTTY` for a device that cannot be reset by itself. The device is quiet
    /// then, all the same.
    pub fn reset(&mut self) -> io::Result<()> {
        self.forget();
        let stuck = self.try_place().into_iter().next();
        let closed = stuck.map_or(Ok(()), |error| Err(io::Error::other(error)));
        let off = self.interrupts.turn_off(&*self.device);
        let silent = self.write_silent();
        // Only with all of that: peers must not reach into a reset.
        let result = closed.and(off).and(silent);
        let result = result.and_then(|()| self.device.reset());
        self.sync_initiator();
        if let Err(error) = &result {
            self.look_for_absence(error);
        }
        self.apply_interrupts();
        result
    }

    /// [`reset`](Self::reset) because of what the guest did: what came of it goes to the event sink.
    pub fn reset_by_guest(&mut self) {
        match self.reset() {
            Ok(()) => self.tell(DeviceEvent::Reset),
            Err(error) => self.tell(DeviceEvent::ResetFailed(error)),
        }
    }

    /// What the guest has programmed is gone.
    fn forget(&mut self) {
        self.command = [0; 2];
        self.power = 0;
        self.bars.reset();
        if let Some(msi) = &mut self.msi {
            msi.reset();
        }
        if let Some(msix) = &mut self.msix {
            msix.reset();
        }
    }

    /// Takes the device from the guest: no bus mastering, no windows, no decode, no interrupts.
    ///
    /// # Errors
    /// [`DetachError`] says what is left; calling again tries again. Dropping the device is possible
    /// in any case: what is still mapped stays alive, and where it is stays taken.
    pub fn detach(&mut self) -> Result<(), DetachError> {
        let sbdf = self.sbdf;
        let mut result = Ok(());
        let mut note = |step: Result<(), DetachError>| {
            if let (Ok(()), Err(error)) = (&result, step) {
                result = Err(error);
            }
        };
        // A device that is gone cannot be written any more, and does not do DMA either.
        let config = |written: io::Result<()>| match written {
            Err(error) if !is_absence(&error) => Err(DetachError::Config { sbdf, error }),
            _ => Ok(()),
        };
        note(config(self.write_quiet()));
        self.sync_initiator();
        let [low, high] = self.command;
        self.command = [low & !config::MEMORY_SPACE, high];
        let windows = self.try_place().into_iter().next();
        note(windows.map_or(Ok(()), |error| Err(error.into())));
        note(config(self.write_silent()));
        let off = self.interrupts.turn_off(&*self.device);
        note(off.map_err(|error| DetachError::Interrupts { sbdf, error }));
        self.detached = result.is_ok();
        result
    }

    /// Gives the device up: it is quiet, and the guest finds nothing in its place.
    fn stop(&mut self, why: DeviceEvent) {
        if self.stopped {
            return;
        }
        self.stopped = true;
        if let Err(error) = self.detach() {
            log::error!("{}: {error}", self.sbdf);
        }
        self.tell(why);
    }

    /// Stops the device if an error says that it is not there any more.
    fn look_for_absence(&mut self, error: &io::Error) {
        if is_absence(error) {
            self.stop(DeviceEvent::Vanished);
        }
    }

    fn tell(&self, event: DeviceEvent) {
        self.events.device_event(self.sbdf, event);
    }
}

/// Whether the kernel says that there is no such device (any more).
fn is_absence(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENXIO))
}

impl Drop for AssignedDevice {
    fn drop(&mut self) {
        if self.detached {
            return;
        }
        if let Err(error) = self.detach() {
            log::warn!("{error}; trying again");
            if let Err(error) = self.detach() {
                log::error!("{error}");
            }
        }
    }
}
