//! The guest's accesses to configuration space.

use std::io;

use iommu_group::spec::header;
use iommu_group::{AddressRange, Bar, Gpa};

use crate::dma::DmaError;
use crate::pci::{Region, VectorKind};

use super::bars;
use super::interrupts::Wanted;
use super::msi::Msi;
use super::msix::Msix;
use super::reset_regs::ResetReg;
use super::{AssignedDevice, DeviceEvent};

const COMMAND: u16 = header::COMMAND;
const COMMAND_END: u16 = COMMAND + 2;
/// Bits of the two bytes of the command register.
pub(super) const MEMORY_SPACE: u8 = header::COMMAND_MEMORY.to_le_bytes()[0];
const BUS_MASTER: u8 = header::COMMAND_BUS_MASTER.to_le_bytes()[0];
const INTERRUPT_DISABLE: u8 = header::COMMAND_INTERRUPT_DISABLE.to_le_bytes()[1];
const IO_SPACE: u8 = header::COMMAND_IO.to_le_bytes()[0];
/// Bits of the command register that the guest reads as it wrote them (PCI r3.0 §6.2.2): memory space
/// in the lower byte, interrupt disable in the upper. I/O space stays off: I/O BARs are not offered.
const OWN_BITS: [u8; 2] = [IO_SPACE | MEMORY_SPACE, INTERRUPT_DISABLE];

/// Parts of configuration space, by how a write is handled.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Register {
    Command,
    Bar,
    Vectors,
    Reset(ResetReg),
    Ignored,
    Hardware,
}

impl AssignedDevice {
    /// Reads configuration space at `offset`; bytes that do not exist read as all ones, and so does all
    /// of a device that is stopped.
    pub fn config_read(&mut self, offset: u16, data: &mut [u8]) {
        data.fill(0xff);
        let Some(data) = data.get_mut(..self.config_len(offset, data.len())) else {
            return;
        };
        if self.stopped || data.is_empty() {
            return;
        }
        if let Err(error) = self.device.read(Region::Config, u64::from(offset), data) {
            log::debug!("{}: config read at {offset:#x}: {error}", self.sbdf);
            data.fill(0xff);
            self.look_for_absence(&error);
            return;
        }
        if offset == 0 && data.starts_with(&[0xff, 0xff]) {
            self.stop(DeviceEvent::Vanished);
            data.fill(0xff);
            return;
        }
        self.mask.apply(offset, data);
        for (at, byte) in (offset..).zip(data) {
            if let Some(own) = self.own_byte(at, *byte) {
                *byte = own;
            }
        }
    }

    /// The byte at `offset` if it is emulated; `hardware` is what the device has there.
    fn own_byte(&self, offset: u16, hardware: u8) -> Option<u8> {
        if let Some(at) = offset.checked_sub(COMMAND).map(usize::from)
            && let (Some(own), Some(value)) = (OWN_BITS.get(at), self.command.get(at))
        {
            return Some((hardware & !own) | (value & own));
        }
        self.bars
            .read(offset)
            .or_else(|| self.msi.as_ref().and_then(|msi| msi.read(offset)))
            .or_else(|| self.msix.as_ref().and_then(|msix| msix.read(offset)))
    }

    /// How many of the `len` bytes at `offset` are in configuration space. The kernel refuses an access that crosses its
    /// end (linux 7.2 drivers/vfio/pci/vfio_pci_config.c: `vfio_config_do_rw()`).
    fn config_len(&self, offset: u16, len: usize) -> usize {
        let size_bytes = self.device.region(Region::Config).size_bytes;
        let rest = size_bytes.saturating_sub(u64::from(offset));
        usize::try_from(rest).map_or(len, |rest| len.min(rest))
    }

    /// Writes configuration space at `offset`; bytes that do not exist are ignored.
    pub fn config_write(&mut self, offset: u16, data: &[u8]) {
        let len = self.config_len(offset, data.len());
        let data = data.get(..len).unwrap_or_default();
        let mut start = 0;
        while let Some(&first) = data.get(start) {
            if self.stopped {
                return;
            }
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
        match register {
            Register::Ignored => {}
            Register::Hardware => {
                self.forward(offset, data);
            }
            Register::Command => {
                let mut command = self.command;
                let at = usize::from(offset.saturating_sub(COMMAND));
                for (slot, byte) in command.iter_mut().skip(at).zip(data) {
                    *slot = *byte;
                }
                self.write_command(command);
            }
            Register::Bar => {
                for (at, byte) in (offset..).zip(data) {
                    self.bars.write(at, *byte);
                }
                self.update_mappings();
            }
            Register::Vectors => {
                for (at, byte) in (offset..).zip(data) {
                    let msi = self.msi.as_mut().is_some_and(|msi| msi.write(at, *byte));
                    if !msi && let Some(msix) = &mut self.msix {
                        msix.write(at, *byte);
                    }
                }
                self.apply_interrupts();
            }
            Register::Reset(control) => {
                for byte in data {
                    self.write_reset_reg(control, offset, *byte);
                }
            }
        }
    }

    /// The register that the configuration byte at `offset` belongs to.
    fn register(&self, offset: u16) -> Register {
        let ours = |read: Option<u8>| read.is_some();
        match offset {
            COMMAND..COMMAND_END => Register::Command,
            header::BAR0..bars::END => Register::Bar,
            _ if self.mask.owns(offset) => Register::Ignored,
            _ if ours(self.msi.as_ref().and_then(|msi| msi.read(offset))) => Register::Vectors,
            _ if ours(self.msix.as_ref().and_then(|msix| msix.read(offset))) => Register::Vectors,
            _ => match self.reset_regs.at(offset) {
                Some(control) => Register::Reset(control),
                None => Register::Hardware,
            },
        }
    }

    fn write_reset_reg(&mut self, register: ResetReg, offset: u16, value: u8) {
        match register {
            ResetReg::Express | ResetReg::AdvancedFeatures => {
                let rest = value & !register.reset_bit();
                self.forward(offset, &[rest]);
                if rest != value {
                    self.reset_by_guest();
                }
            }
            ResetReg::Power => self.write_power(offset, value),
        }
    }

    /// A function that is not in D0 answers to configuration accesses only (PCI PM r1.2 §5.3), and the kernel revokes its
    /// BARs: they are unmapped before the write, and mapped after it.
    fn write_power(&mut self, offset: u16, value: u8) {
        let (before, after) = (self.power, value & 0b11);
        if after != 0 {
            self.power = after;
            self.update_mappings();
            self.forward(offset, &[value]);
            return;
        }
        self.forward(offset, &[value]);
        self.power = 0;
        if before == 0b11 && self.reset_regs.soft_reset {
            self.forget();
            self.write_command([0; 2]);
        } else {
            self.update_mappings();
        }
    }

    /// Writes the command register. BARs are unmapped before decode goes off, and mapped after it is on, because the
    /// IOMMU can map a BAR only while it decodes.
    pub(super) fn write_command(&mut self, command: [u8; 2]) {
        let [low, high] = command;
        let mut value = [low & !IO_SPACE, high];
        let on = low & MEMORY_SPACE != 0;
        if low & BUS_MASTER != 0
            && let Err(error) = self.add_initiator()
        {
            value[0] &= !BUS_MASTER;
            self.emit(DeviceEvent::Initiator(error));
        }
        if !on {
            self.command = value;
            self.update_mappings();
        }
        let written = self.forward(COMMAND, &value);
        if on && written {
            self.command = value;
            self.update_mappings();
        }
        self.sync_initiator();
        self.apply_interrupts();
    }

    /// Makes the BARs of its peers reachable, before the device can send requests.
    fn add_initiator(&self) -> Result<(), DmaError> {
        let domain = self.domain.as_ref();
        domain.map_or(Ok(()), |domain| domain.add_initiator(self.sbdf))
    }

    /// Takes the BARs of its peers away again, if bus mastering is off.
    pub(super) fn sync_initiator(&self) {
        if self.command[0] & BUS_MASTER != 0 {
            return;
        }
        let domain = self.domain.as_ref();
        for error in domain.map_or_else(Vec::new, |domain| domain.remove_initiator(self.sbdf)) {
            log::error!("{}: {error}", self.sbdf);
        }
    }

    /// Turns bus mastering off: the device sends no requests from then on.
    pub(super) fn write_quiet(&mut self) -> io::Result<()> {
        let [low, high] = self.command;
        let quiet = [low & !BUS_MASTER, high];
        self.write_raw_command(quiet)?;
        self.command = quiet;
        Ok(())
    }

    /// Turns memory decode off too. BARs are unmapped by now.
    pub(super) fn write_silent(&mut self) -> io::Result<()> {
        self.write_raw_command([0; 2])
    }

    /// Writes the command register, before BARs can be mapped.
    pub(super) fn write_raw_command(&mut self, command: [u8; 2]) -> io::Result<()> {
        self.device
            .write(Region::Config, u64::from(COMMAND), &command)
    }

    /// Writes the hardware's register and returns whether that worked. An error is emitted.
    fn forward(&mut self, offset: u16, data: &[u8]) -> bool {
        let at = u64::from(offset);
        let Err(error) = self.device.write(Region::Config, at, data) else {
            return true;
        };
        self.look_for_absence(&error);
        self.emit(DeviceEvent::Config { offset, error });
        false
    }

    /// The range that a BAR decodes: the function is in D0, memory decode is on, and the bridges above forward the
    /// range.
    fn decoded(&self, info: &Bar) -> Option<AddressRange<Gpa>> {
        let range = self.bars.range(info)?;
        let on = self.command[0] & MEMORY_SPACE != 0 && self.power == 0 && !self.stopped;
        let inside = self.reach.iter().any(|window| window.contains(&range));
        (on && inside).then_some(range)
    }

    /// Updates BAR mappings by the registers, and emits errors.
    pub(super) fn update_mappings(&mut self) {
        for error in self.try_place() {
            self.emit(DeviceEvent::BarMapping(error));
        }
    }

    pub(super) fn try_place(&mut self) -> Vec<super::BarMappingError> {
        let at: Vec<_> = self
            .bars
            .infos()
            .iter()
            .filter_map(|info| Some((info.index, self.decoded(info)?)))
            .collect();
        let errors = self.mappings.place(|bar| {
            let found = at.iter().find(|(index, _)| *index == bar);
            found.map(|(_, range)| *range)
        });
        for moved in self.fixed_bars.scan(|bar| self.mappings.live(bar)) {
            self.emit(moved.into());
        }
        errors
    }

    /// Sets interrupts up by the registers, and emits an error.
    pub(super) fn apply_interrupts(&mut self) {
        let wanted = self.wanted_interrupts();
        if let Err(error) = self.interrupts.apply(&*self.device, &wanted) {
            self.look_for_absence(&error);
            self.emit(DeviceEvent::Interrupts(error));
        }
    }

    pub(super) fn wanted_interrupts(&self) -> Wanted {
        if self.stopped {
            return Wanted::Off;
        }
        if let Some(messages) = self.msix.as_ref().and_then(Msix::messages) {
            return Wanted::Vectors(VectorKind::Msix, messages);
        }
        if let Some(messages) = self.msi.as_ref().and_then(Msi::messages) {
            return Wanted::Vectors(VectorKind::Msi, messages);
        }
        let [_, high] = self.command;
        if self.has_line && high & INTERRUPT_DISABLE == 0 {
            return Wanted::Line;
        }
        Wanted::Off
    }
}
