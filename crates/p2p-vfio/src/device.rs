//! An assigned device: a host function as the guest sees it.
//!
//! ```text
//!  guest ──config──▶ overlay, BARs, MSI, MSI-X ──rest──▶ VFIO
//!        ──MMIO────▶ memory slot (whole pages)  or  read/write through VFIO
//!  peer  ──DMA─────▶ IOMMU context of the P2P domain ──▶ BAR
//! ```
//! BAR windows follow what the guest has programmed: each configuration write first changes the
//! registers, then [`Windows::place`](windows::Windows) makes the world agree with them. With
//! memory decode off a device has no window anywhere.

mod bars;
mod capability;
mod host;
mod interrupts;
mod msi;
mod msix;
mod overlay;
mod windows;

#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;

use iommu_group::Sbdf;
use thiserror::Error;

use crate::address::{AddressRange, Gpa};
use crate::context::ContextError;
use crate::memory::HostMemory;
use crate::pci::{PciBackend, Region, VectorKind};
use crate::vmm::{MemorySlots, MsiRouter};

pub use bars::BarInfo;
use bars::Bars;
pub use host::HostDevice;
use interrupts::Interrupts;
use msi::Msi;
use msix::Msix;
use overlay::Overlay;
pub use windows::WindowError;
use windows::{Windows, mappable_areas};

const COMMAND: u16 = 0x04;
const COMMAND_END: u16 = 0x06;
const MEMORY_SPACE: u8 = 0b10;
const CAP_MSI: u16 = 0x05;
const CAP_MSIX: u16 = 0x11;

/// Why a device could not be assigned. It was given back to VFIO as it was found.
#[derive(Debug, Error)]
pub enum AttachError {
    /// It could not be opened in its IOMMU context.
    #[error(transparent)]
    Context(#[from] ContextError),
    /// Its configuration space could not be read.
    #[error("cannot read configuration space of {sbdf}: {error}")]
    Config {
        /// The device.
        sbdf: Sbdf,
        /// What the kernel said.
        error: io::Error,
    },
    /// It has a BAR that PCI does not allow.
    #[error("BAR {bar} of {sbdf} has a size that no BAR can have: {size_bytes} bytes")]
    BarSize {
        /// The device.
        sbdf: Sbdf,
        /// The BAR.
        bar: u8,
        /// What the kernel says.
        size_bytes: u64,
    },
    /// A BAR could not be mapped into this process.
    #[error("cannot map BAR {bar} of {sbdf}: {error}")]
    MapBar {
        /// The device.
        sbdf: Sbdf,
        /// The BAR.
        bar: u8,
        /// What the kernel said.
        error: io::Error,
    },
}

/// What a VMM gives to an assigned device.
pub struct DeviceParams {
    /// Where its BARs are shown to the guest.
    pub slots: Arc<dyn MemorySlots>,
    /// Where its interrupts go.
    pub msi: Arc<dyn MsiRouter>,
    /// Guest-physical ranges in which BARs may be; a BAR elsewhere is not decoded.
    pub mmio: Vec<AddressRange<Gpa>>,
}

/// A host function that a guest owns.
///
/// Fields are in the order of their release: windows first, so that nobody reaches the device when
/// it goes, then interrupts, then the device, which holds its context.
pub struct AssignedDevice {
    sbdf: Sbdf,
    windows: Windows,
    interrupts: Interrupts,
    command: [u8; 2],
    bars: Bars,
    msi: Option<Msi>,
    msix: Option<Msix>,
    overlay: Overlay,
    mmio: Vec<AddressRange<Gpa>>,
    device: Box<dyn PciBackend>,
}

impl AssignedDevice {
    /// Makes an open device one of a guest. Memory decode is off and its BARs are at 0 until
    /// [`place_bar`](Self::place_bar) and [`enable_memory`](Self::enable_memory).
    ///
    /// # Errors
    /// [`AttachError`] names the device and what was attempted; the device is closed then.
    pub fn new(host: HostDevice, params: DeviceParams) -> Result<Self, AttachError> {
        let HostDevice {
            sbdf,
            device,
            config,
            bars,
            domain,
        } = host;
        let mut this = Self {
            sbdf,
            windows: Windows::new(sbdf, params.slots, domain),
            interrupts: Interrupts::new(params.msi),
            command: [0; 2],
            bars,
            msi: None,
            msix: None,
            overlay: Overlay::of_endpoint(&capability::extended(&config)),
            mmio: params.mmio,
            device,
        };
        (this.msi, this.msix) = read_vectors(&*this.device, &config);
        this.map_bars()?;
        let off = this.write_command(0, &[0, 0]);
        off.map_err(|error| AttachError::Config { sbdf, error })?;
        Ok(this)
    }

    /// Maps what can be mapped of the BARs into this process; it is visible to nobody yet.
    fn map_bars(&mut self) -> Result<(), AttachError> {
        let structures: Vec<_> = self
            .msix
            .iter()
            .flat_map(|msix| [msix.table, msix.pending])
            .collect();
        for info in self.bars.infos() {
            let bar = info.index;
            let traps: Vec<_> = structures
                .iter()
                .filter(|s| s.bar == bar)
                .map(|s| (s.offset, s.len_bytes))
                .collect();
            let region = Region::Bar(bar);
            for (offset, len_bytes) in mappable_areas(&self.device.region(region), &traps) {
                let len = usize::try_from(len_bytes).unwrap_or(usize::MAX);
                let mapping = self.device.map(region, offset, len);
                let mapping = mapping.map_err(|error| AttachError::MapBar {
                    sbdf: self.sbdf,
                    bar,
                    error,
                })?;
                self.windows
                    .add(bar, offset, HostMemory::of_bar(Arc::new(mapping)));
            }
        }
        Ok(())
    }

    /// Its address on the host.
    pub fn sbdf(&self) -> Sbdf {
        self.sbdf
    }

    /// The memory BARs that need an address.
    pub fn bars(&self) -> &[BarInfo] {
        self.bars.infos()
    }

    /// Gives a BAR its address, before the guest looks.
    ///
    /// # Errors
    /// [`WindowError`] if memory decode is on and the window could not follow.
    pub fn place_bar(&mut self, info: &BarInfo, gpa: Gpa) -> Result<(), WindowError> {
        self.bars.set(info, gpa);
        self.place_windows()
    }

    /// Turns memory decode on, so that the guest finds its BARs mapped and peers reach them.
    ///
    /// # Errors
    /// [`WindowError`] if a window could not be opened.
    pub fn enable_memory(&mut self) -> Result<(), WindowError> {
        let on = self.command[0] | MEMORY_SPACE;
        if let Err(error) = self.forward(Region::Config, u64::from(COMMAND), &[on]) {
            log::error!("{}: {error}", self.sbdf);
        }
        self.command[0] = on;
        self.place_windows()
    }

    /// Reads configuration space at `offset`; bytes that do not exist read as all ones.
    pub fn config_read(&self, offset: u16, data: &mut [u8]) {
        data.fill(0xff);
        if let Err(error) = self.device.read(Region::Config, u64::from(offset), data) {
            log::debug!("{}: config read at {offset:#x}: {error}", self.sbdf);
            data.fill(0xff);
            return;
        }
        self.overlay.apply(offset, data);
        for (at, byte) in (offset..).zip(data) {
            let own = self
                .bars
                .read(at)
                .or_else(|| self.msi.as_ref().and_then(|msi| msi.read(at)))
                .or_else(|| self.msix.as_ref().and_then(|msix| msix.read(at)));
            if let Some(own) = own {
                *byte = own;
            }
        }
    }

    /// Writes configuration space at `offset`.
    pub fn config_write(&mut self, offset: u16, data: &[u8]) {
        let mut start = 0;
        while let Some(&first) = data.get(start) {
            let at = offset.saturating_add(u16::try_from(start).unwrap_or(u16::MAX));
            let register = self.register(at);
            let mut run = vec![first];
            for (next, byte) in (at..).zip(data.iter().skip(start)).skip(1) {
                if self.register(next) != register {
                    break;
                }
                run.push(*byte);
            }
            start += run.len();
            self.write_run(register, at, &run);
        }
    }

    fn write_run(&mut self, register: Register, offset: u16, data: &[u8]) {
        let result = match register {
            Register::Ignored => Ok(()),
            Register::Hardware => self.forward(Region::Config, u64::from(offset), data),
            Register::Command => self.write_command(usize::from(offset - COMMAND), data),
            Register::Bar => {
                for (at, byte) in (offset..).zip(data) {
                    self.bars.write(at, *byte);
                }
                self.place_windows().map_err(io::Error::other)
            }
            Register::Vectors => {
                for (at, byte) in (offset..).zip(data) {
                    let msi = self.msi.as_mut().is_some_and(|msi| msi.write(at, *byte));
                    if !msi && let Some(msix) = &mut self.msix {
                        msix.write(at, *byte);
                    }
                }
                self.apply_vectors()
            }
        };
        if let Err(error) = result {
            log::error!("{}: config write at {offset:#x}: {error}", self.sbdf);
        }
    }

    /// Which part of the device the configuration byte at `offset` belongs to.
    fn register(&self, offset: u16) -> Register {
        let ours = |read: Option<u8>| read.is_some();
        match offset {
            COMMAND..COMMAND_END => Register::Command,
            0x10..bars::END => Register::Bar,
            _ if self.overlay.owns(offset) => Register::Ignored,
            _ if ours(self.msi.as_ref().and_then(|msi| msi.read(offset))) => Register::Vectors,
            _ if ours(self.msix.as_ref().and_then(|msix| msix.read(offset))) => Register::Vectors,
            _ => Register::Hardware,
        }
    }

    /// Writes the command register from byte `at`: windows close before decode goes off, and open
    /// after it is on, because the IOMMU can map a BAR only while it decodes.
    fn write_command(&mut self, at: usize, data: &[u8]) -> io::Result<()> {
        let mut command = self.command;
        for (slot, byte) in command.iter_mut().skip(at).zip(data) {
            *slot = *byte;
        }
        if command[0] & MEMORY_SPACE == 0 {
            self.command = command;
            self.place_windows().map_err(io::Error::other)?;
            self.forward(Region::Config, u64::from(COMMAND), &command)
        } else {
            self.forward(Region::Config, u64::from(COMMAND), &command)?;
            self.command = command;
            self.place_windows().map_err(io::Error::other)
        }
    }

    fn forward(&self, region: Region, offset: u64, data: &[u8]) -> io::Result<()> {
        self.device.write(region, offset, data)
    }

    /// Where a BAR is decoded: memory decode is on and its address is one that the VMM gives out.
    fn decoded(&self, info: &BarInfo) -> Option<AddressRange<Gpa>> {
        let range = self.bars.range(info)?;
        let on = self.command[0] & MEMORY_SPACE != 0;
        let inside = self.mmio.iter().any(|window| window.contains(&range));
        (on && inside).then_some(range)
    }

    fn place_windows(&mut self) -> Result<(), WindowError> {
        let at: Vec<(u8, Gpa)> = self
            .bars
            .infos()
            .iter()
            .filter_map(|info| Some((info.index, self.decoded(info)?.start())))
            .collect();
        self.windows.place(|bar| {
            let found = at.iter().find(|(index, _)| *index == bar);
            found.map(|(_, gpa)| *gpa)
        })
    }

    fn apply_vectors(&mut self) -> io::Result<()> {
        let msix = self.msix.as_ref().and_then(Msix::messages);
        let msi = self.msi.as_ref().and_then(Msi::messages);
        let wanted = match (msix, msi) {
            (Some(messages), _) => Some((VectorKind::Msix, messages)),
            (None, Some(messages)) => Some((VectorKind::Msi, messages)),
            (None, None) => None,
        };
        self.interrupts.apply(&*self.device, wanted)
    }

    /// Which BAR an address is in, with the offset, and how much of `len` bytes fits there.
    fn locate(&self, gpa: Gpa, len: usize) -> Option<(u8, u64)> {
        self.bars.infos().iter().find_map(|info| {
            let range = self.decoded(info)?;
            let offset = range.offset_of(gpa)?;
            let fits = offset.checked_add(len as u64)? <= range.len_bytes();
            fits.then_some((info.index, offset))
        })
    }

    /// Serves a trapped read; whether the address belongs to this device.
    pub fn mmio_read(&self, gpa: Gpa, data: &mut [u8]) -> bool {
        let Some((bar, offset)) = self.locate(gpa, data.len()) else {
            return false;
        };
        if let Some(msix) = &self.msix
            && let Some(at) = msix.table.locate(bar, offset)
        {
            msix.read_table(at, data);
        } else if let Err(error) = self.device.read(Region::Bar(bar), offset, data) {
            log::debug!("{}: read of BAR {bar} at {offset:#x}: {error}", self.sbdf);
            data.fill(0xff);
        }
        true
    }

    /// Serves a trapped write; whether the address belongs to this device.
    pub fn mmio_write(&mut self, gpa: Gpa, data: &[u8]) -> bool {
        let Some((bar, offset)) = self.locate(gpa, data.len()) else {
            return false;
        };
        let in_table = self
            .msix
            .as_mut()
            .and_then(|msix| Some((msix.table.locate(bar, offset)?, msix)));
        let result = if let Some((at, msix)) = in_table {
            msix.write_table(at, data);
            self.apply_vectors()
        } else {
            self.forward(Region::Bar(bar), offset, data)
        };
        if let Err(error) = result {
            log::error!("{}: write of BAR {bar} at {offset:#x}: {error}", self.sbdf);
        }
        true
    }

    /// Brings the device to its state after power-on: no windows, no interrupts, BARs kept.
    ///
    /// # Errors
    /// The errno of VFIO; `ENOTTY` for a device that cannot be reset by itself.
    pub fn reset(&mut self) -> io::Result<()> {
        self.write_command(0, &[0, 0])?;
        if let Some(msi) = &mut self.msi {
            msi.reset();
        }
        if let Some(msix) = &mut self.msix {
            msix.reset();
        }
        self.interrupts.turn_off(&*self.device)?;
        self.device.reset()
    }
}

impl Drop for AssignedDevice {
    fn drop(&mut self) {
        // Bus mastering off: nothing the guest left running may write after the windows are gone.
        if let Err(error) = self.write_command(0, &[0, 0]) {
            log::warn!("{}: while quiescing: {error}", self.sbdf);
        }
        if let Err(error) = self.interrupts.turn_off(&*self.device) {
            log::warn!("{}: while turning interrupts off: {error}", self.sbdf);
        }
    }
}

/// The parts of configuration space that are written in different ways.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Register {
    Command,
    Bar,
    Vectors,
    Ignored,
    Hardware,
}

fn read_vectors(device: &dyn PciBackend, config: &[u8]) -> (Option<Msi>, Option<Msix>) {
    let (mut msi, mut msix) = (None, None);
    for capability::Capability { id, offset } in capability::standard(config) {
        let Some(header) = capability::dword(config, offset) else {
            continue;
        };
        let [low, next, control_low, control_high] = header.to_le_bytes();
        let control = u16::from_le_bytes([control_low, control_high]);
        if id == CAP_MSI && device.vectors(VectorKind::Msi) > 0 {
            msi = Some(Msi::new(offset, [low, next], control));
        }
        if id == CAP_MSIX
            && device.vectors(VectorKind::Msix) > u32::from(control & 0x7ff)
            && let (Some(table), Some(pending)) = (
                capability::dword(config, offset + 4),
                capability::dword(config, offset + 8),
            )
        {
            msix = Some(Msix::new(offset, control, table, pending));
        }
    }
    (msi, msix)
}
