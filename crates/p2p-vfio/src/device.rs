//! An assigned device: a host function as the guest sees it.
//!
//! ```text
//!  guest ──config──▶ config mask, BARs, MSI, MSI-X ──rest──▶ VFIO
//!        ──MMIO────▶ memory slot (whole pages)  or  read/write through VFIO
//!  peer  ──DMA─────▶ IOMMU context of the P2P domain ──▶ BAR
//! ```
//! BAR mappings follow what the guest has programmed: each configuration write first changes the registers, then
//! [`BarMappings::place`](bar_mappings::BarMappings) updates the mappings. A BAR is unmapped while memory decode is off,
//! the function is in a low-power state or in reset, the bridges above do not forward its address, or another device
//! claims the address. The registers keep what the guest wrote, as in hardware, and the VMM gets a [`DeviceEvent`].

mod attach;
mod bar_mappings;
mod bars;
mod capability;
mod clique;
mod config;
mod config_mask;
mod error;
mod event;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod host;
mod interrupts;
mod mmap_ranges;
mod mmio;
mod msi;
mod msix;
mod reset_regs;
mod vfio_events;

#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;

use guest_topology::FixedBars;
use iommu_group::{AddressRange, Bar, Gpa, Iova, Sbdf};
use vmm_sys_util::eventfd::EventFd;

use crate::descriptors::DescriptorLimit;
use crate::pci::{PciBackend, VfioEvent};
use crate::peers::PeerBars;
use crate::vmm::{AddressClaims, EventSink, IntxLine, MemorySlots, MsiRouter};

pub use bar_mappings::BarMappingError;
use bar_mappings::BarMappings;
use bars::Bars;
pub use clique::Clique;
use config_mask::ConfigMask;
pub use error::{AttachError, DetachError};
pub use event::DeviceEvent;
pub use host::HostDevice;
use interrupts::Interrupts;
use msi::Msi;
use msix::Msix;
use reset_regs::ResetRegs;
use vfio_events::VfioEvents;

/// What a VMM gives to an assigned device.
pub struct DeviceParams {
    /// Memory slots for its BARs.
    pub slots: Arc<dyn MemorySlots>,
    /// Claims of the addresses of its BARs.
    pub claims: Arc<dyn AddressClaims>,
    /// Routes of its message-signalled interrupts.
    pub msi: Arc<dyn MsiRouter>,
    /// Limit of the descriptors for its vectors, because the guest decides how many it enables.
    pub vector_fds: DescriptorLimit,
    /// The line of its pin INTA; `None` hides the pin.
    pub intx: Option<Arc<dyn IntxLine>>,
    /// Receives its events.
    pub events: Arc<dyn EventSink>,
    /// Guest-physical ranges that the bridges above forward: a BAR elsewhere is not mapped.
    pub mmio: Vec<AddressRange<Gpa>>,
    /// The clique id of an NVIDIA GPU in a P2P domain: the guest's driver uses P2P between GPUs of one id. Other devices
    /// ignore it.
    pub clique: Option<Clique>,
}

/// A host function that a guest owns.
///
/// Fields are dropped in order: the BAR mappings first, so that no peer reaches the device while it is closed, then the
/// interrupts, then the device, which holds its context.
pub struct AssignedDevice {
    sbdf: Sbdf,
    mappings: BarMappings,
    /// The table of its P2P domain, whose BARs it reaches as a bus master.
    domain: Option<Arc<PeerBars>>,
    fixed_bars: FixedBars,
    interrupts: Interrupts,
    vfio_events: VfioEvents,
    events: Arc<dyn EventSink>,
    command: [u8; 2],
    /// 0 is D0, 3 is D3hot.
    power: u8,
    /// The guest reads all ones.
    stopped: bool,
    detached: bool,
    has_line: bool,
    bars: Bars,
    msi: Option<Msi>,
    msix: Option<Msix>,
    reset_regs: ResetRegs,
    mask: ConfigMask,
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
        infos.filter_map(|info| Some((info, self.mappings.live(info.index)?)))
    }

    /// Ranges of its BARs, in I/O addresses, that its peers reach while they are bus masters, with the index of the BAR.
    pub fn peer_windows(&self) -> impl Iterator<Item = (u8, AddressRange<Iova>)> {
        self.mappings.peers()
    }

    /// Unmaps its BARs for its peers, wherever the guest places them, until it is called with `false`. Requests of
    /// peers fault in the IOMMU meanwhile; the guest's own accesses are not affected.
    ///
    /// # Errors
    /// [`BarMappingError`] if a BAR could not be mapped or unmapped; the others are as requested.
    pub fn set_revoked(&mut self, revoked: bool) -> Result<(), BarMappingError> {
        let errors = self.mappings.set_revoked(revoked);
        errors.into_iter().next().map_or(Ok(()), Err)
    }

    /// Sets the address of a BAR, as firmware does.
    ///
    /// # Errors
    /// [`BarMappingError`] if memory decode is on and the mapping could not follow.
    pub fn place_bar(&mut self, info: &Bar, gpa: Gpa) -> Result<(), BarMappingError> {
        self.bars.set(info, gpa);
        self.try_place().into_iter().next().map_or(Ok(()), Err)
    }

    /// Turns memory decode on and maps the BARs.
    ///
    /// # Errors
    /// [`AttachError`] if the register cannot be written, no bridge forwards the address of a BAR, or a BAR cannot be
    /// mapped. Then memory decode is off and no BAR is mapped.
    pub fn enable_memory(&mut self) -> Result<(), AttachError> {
        let sbdf = self.sbdf;
        let [low, high] = self.command;
        let on = [low | config::MEMORY_SPACE, high];
        self.write_raw_command(on)
            .map_err(|error| AttachError::Config { sbdf, error })?;
        self.command = on;
        let stuck = self.try_place().into_iter().next();
        let Some(error) = stuck.map(AttachError::BarMapping).or_else(|| self.beyond()) else {
            return Ok(());
        };
        self.write_command([low, high]);
        Err(error)
    }

    /// A BAR that is not mapped although memory decode is on.
    fn beyond(&self) -> Option<AttachError> {
        let mut infos = self.bars.infos().iter();
        let info = infos.find(|info| self.mappings.live(info.index).is_none())?;
        Some(AttachError::Beyond {
            sbdf: self.sbdf,
            bar: info.index,
            range: self.bars.range(info)?,
        })
    }

    /// Sets the guest-physical ranges that every bridge above the device forwards. Call it when the guest has
    /// reprogrammed a bridge.
    pub fn set_reach(&mut self, ranges: &[AddressRange<Gpa>]) {
        if self.reach != ranges {
            self.reach = ranges.to_vec();
            self.update_mappings();
        }
    }

    /// Tries again to map BARs whose address another device had claimed. Call it when that device may have moved.
    pub fn retry_mappings(&mut self) {
        if self.mappings.is_unsettled() {
            self.update_mappings();
        }
    }

    /// The eventfds by which VFIO reports an error, or requests the device back. A VMM waits for them and calls
    /// [`process_events`](Self::process_events).
    pub fn host_events(&self) -> impl Iterator<Item = &EventFd> {
        self.vfio_events.events()
    }

    /// Reads the events that VFIO has reported, acts on them and emits them to the event sink.
    pub fn process_events(&mut self) {
        for notice in self.vfio_events.take() {
            match notice {
                VfioEvent::Error => self.stop(DeviceEvent::Error),
                VfioEvent::Request => self.emit(DeviceEvent::Requested),
            }
        }
    }

    /// Resets the function alone and puts the guest's view of it into the state after power-on: memory decode off, BARs
    /// at 0, no interrupts. Its BARs are unmapped for peers before the reset, and mapped when the guest has programmed it
    /// again.
    ///
    /// # Errors
    /// The errno of VFIO; `ENOTTY` for a device that cannot be reset alone. Bus mastering and memory decode are off
    /// also after an error.
    pub fn reset(&mut self) -> io::Result<()> {
        self.forget();
        let stuck = self.try_place().into_iter().next();
        let closed = stuck.map_or(Ok(()), |error| Err(io::Error::other(error)));
        let off = self.interrupts.turn_off(&*self.device);
        let silent = self.write_silent();
        // Reset only after all of that succeeded: peers must not reach a device in reset.
        let result = closed.and(off).and(silent);
        let result = result.and_then(|()| self.device.reset());
        self.sync_initiator();
        if let Err(error) = &result {
            self.look_for_absence(error);
        }
        self.apply_interrupts();
        result
    }

    /// [`reset`](Self::reset) by the guest; the event sink gets the result.
    pub fn reset_by_guest(&mut self) {
        match self.reset() {
            Ok(()) => self.emit(DeviceEvent::Reset),
            Err(error) => self.emit(DeviceEvent::ResetFailed(error)),
        }
    }

    /// Puts the emulated registers into their state after reset.
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

    /// Takes the device from the guest: turns off bus mastering, unmaps its BARs, turns off memory decode and interrupts.
    ///
    /// # Errors
    /// [`DetachError`] names the first failure; a second call tries again. The device can be dropped in any case: memory
    /// that is still mapped is kept, and its address stays claimed.
    pub fn detach(&mut self) -> Result<(), DetachError> {
        let sbdf = self.sbdf;
        let mut result = Ok(());
        let mut note = |step: Result<(), DetachError>| {
            if let (Ok(()), Err(error)) = (&result, step) {
                result = Err(error);
            }
        };
        // A device that is gone cannot be written and does no DMA.
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

    /// Detaches the device. The guest reads all ones in its place from then on.
    fn stop(&mut self, why: DeviceEvent) {
        if self.stopped {
            return;
        }
        self.stopped = true;
        if let Err(error) = self.detach() {
            log::error!("{}: {error}", self.sbdf);
        }
        self.emit(why);
    }

    /// Stops the device if an error says that it is gone.
    fn look_for_absence(&mut self, error: &io::Error) {
        if is_absence(error) {
            self.stop(DeviceEvent::Vanished);
        }
    }

    fn emit(&self, event: DeviceEvent) {
        self.events.device_event(self.sbdf, event);
    }
}

/// Whether the kernel reports that the device does not exist.
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
