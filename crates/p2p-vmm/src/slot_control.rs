//! The slot controller: registers in the guest's I/O space, an interrupt to the guest, a bell for the main thread.
//!
//! A vCPU that ejects takes what was in the slot from the guest's PCI bus and rings; whatever takes longer, such as
//! closing a device, is the main thread's.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex};

use hotplug::{Slot, SlotBus, SlotRegisters};
use vmm_sys_util::eventfd::EventFd;

use crate::irq::Gsi;
use crate::lock::lock;
use crate::pci::{PciBus, SharedFunction};

/// First port of the registers; our choice, named in the DSDT.
pub(crate) const SLOT_PORT: u16 = 0x620;
/// The pin of the I/O APIC that the event device has for itself.
pub(crate) const SLOT_GSI: Gsi = Gsi::ioapic_pin(9);

/// The guest's slots, as vCPUs and the main thread share them.
pub(crate) struct SlotControl {
    registers: Mutex<SlotRegisters>,
    pci: Arc<PciBus>,
    interrupt: EventFd,
    emptied: Mutex<Emptied>,
    bell: EventFd,
}

/// What vCPUs have emptied. The functions are here so that no vCPU is the last to let go of one.
#[derive(Default)]
struct Emptied {
    slots: BTreeSet<Slot>,
    functions: Vec<SharedFunction>,
}

impl SlotControl {
    pub(crate) fn new(pci: Arc<PciBus>) -> io::Result<Self> {
        let event = || EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC);
        Ok(Self {
            registers: Mutex::default(),
            pci,
            interrupt: event()?,
            emptied: Mutex::default(),
            bell: event()?,
        })
    }

    /// Raises the interrupt of the guest's event device.
    pub(crate) fn interrupt(&self) -> &EventFd {
        &self.interrupt
    }

    /// Readable when the guest has emptied slots.
    pub(crate) fn bell(&self) -> &EventFd {
        &self.bell
    }

    /// Reads registers; the guest reads them as double words.
    pub(crate) fn read(&self, offset: u16, data: &mut [u8]) {
        match <&mut [u8; 4]>::try_from(&mut *data) {
            Ok(bytes) => *bytes = lock(&self.registers).read(offset).to_le_bytes(),
            Err(_) => data.fill(0xff),
        }
    }

    /// Writes registers; the guest writes them as double words.
    pub(crate) fn write(&self, offset: u16, data: &[u8]) {
        let Ok(bytes) = data.try_into() else {
            return;
        };
        let slots = lock(&self.registers).write(offset, u32::from_le_bytes(bytes));
        if slots.is_empty() {
            return;
        }
        let functions: Vec<_> = slots.iter().flat_map(|s| self.pci.unplug(*s)).collect();
        {
            let mut emptied = lock(&self.emptied);
            emptied.slots.extend(slots);
            emptied.functions.extend(functions);
        }
        ring(&self.bell);
    }

    /// The slots that the guest has emptied since the last time.
    pub(crate) fn take_emptied(&self) -> BTreeSet<Slot> {
        // Silent if nobody has rung.
        let _ = self.bell.read();
        std::mem::take(&mut *lock(&self.emptied)).slots
    }

    /// Something was put into `slot`. A guest that boots finds it.
    pub(crate) fn occupy(&self, slot: Slot) {
        lock(&self.registers).occupy(slot);
    }

    /// Tells the guest that something was put into `slot`.
    pub(crate) fn announce(&self, slot: Slot) {
        lock(&self.registers).announce(slot);
        ring(&self.interrupt);
    }

    /// Asks the guest to let go of what is in `slot`.
    pub(crate) fn ask(&self, slot: Slot) {
        lock(&self.registers).ask(slot);
        ring(&self.interrupt);
    }

    /// Takes the question back; whether the guest has not seen it.
    pub(crate) fn withdraw(&self, slot: Slot) -> bool {
        lock(&self.registers).withdraw(slot)
    }

    /// Takes what is in `slot` from the guest without asking; whether it was still there.
    pub(crate) fn take_away(&self, slot: Slot) -> bool {
        let there = lock(&self.registers).vacate(slot);
        if there {
            drop(self.pci.unplug(slot));
        }
        there
    }

    /// Tells the guest that something on `bus` has gone.
    pub(crate) fn rescan(&self, bus: SlotBus) {
        lock(&self.registers).rescan(bus);
        ring(&self.interrupt);
    }

    /// Whether something is in `slot`.
    pub(crate) fn is_occupied(&self, slot: Slot) -> bool {
        lock(&self.registers).is_occupied(slot)
    }

    /// Presses the guest's power button.
    pub(crate) fn press_button(&self) {
        lock(&self.registers).press_button();
        ring(&self.interrupt);
    }
}

fn ring(event: &EventFd) {
    if let Err(error) = event.write(1) {
        log::error!("cannot signal an eventfd of the slots: {error}");
    }
}
