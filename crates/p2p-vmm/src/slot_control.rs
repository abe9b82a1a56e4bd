//! The slot controller: registers in the guest's I/O space, an interrupt to the guest, a wake for the main thread.
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
    wake: EventFd,
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
            wake: event()?,
        })
    }

    /// Raises the interrupt of the guest's event device.
    pub(crate) fn interrupt(&self) -> &EventFd {
        &self.interrupt
    }

    /// Readable when the guest has emptied slots.
    pub(crate) fn wake(&self) -> &EventFd {
        &self.wake
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
        // Known as emptied before it looks free on the bus, so that nothing comes into the slot in between and is taken
        // for what was there.
        lock(&self.emptied).slots.extend(&slots);
        let functions: Vec<_> = slots.iter().flat_map(|s| self.pci.unplug(*s)).collect();
        lock(&self.emptied).functions.extend(functions);
        signal(&self.wake);
    }

    /// The slots that the guest has emptied since the last time.
    pub(crate) fn take_emptied(&self) -> BTreeSet<Slot> {
        // Silent if nobody has rung.
        let _ = self.wake.read();
        std::mem::take(&mut *lock(&self.emptied)).slots
    }

    /// The device numbers on `bus` that the guest has emptied and nobody has asked for since.
    pub(crate) fn emptied(&self, bus: SlotBus) -> BTreeSet<u8> {
        let emptied = lock(&self.emptied);
        let here = emptied.slots.iter().filter(|slot| slot.bus() == bus);
        here.map(|slot| slot.device()).collect()
    }

    /// Something was put into `slot`. A guest that boots finds it.
    pub(crate) fn occupy(&self, slot: Slot) {
        lock(&self.registers).occupy(slot);
    }

    /// Tells the guest that something was put into `slot`.
    pub(crate) fn announce(&self, slot: Slot) {
        lock(&self.registers).announce(slot);
        signal(&self.interrupt);
    }

    /// Asks the guest to let go of what is in `slot`.
    pub(crate) fn request_unplug(&self, slot: Slot) {
        lock(&self.registers).ask(slot);
        signal(&self.interrupt);
    }

    /// Takes the question back; whether the guest has not seen it.
    pub(crate) fn withdraw_request(&self, slot: Slot) -> bool {
        lock(&self.registers).withdraw(slot)
    }

    /// Takes what is in `slot` from the guest without asking; whether it was still there.
    pub(crate) fn remove(&self, slot: Slot) -> bool {
        let was_occupied = lock(&self.registers).vacate(slot);
        if was_occupied {
            drop(self.pci.unplug(slot));
        }
        was_occupied
    }

    /// Tells the guest that something on `bus` has gone.
    pub(crate) fn rescan(&self, bus: SlotBus) {
        lock(&self.registers).rescan(bus);
        signal(&self.interrupt);
    }

    /// Whether something is in `slot`.
    pub(crate) fn is_occupied(&self, slot: Slot) -> bool {
        lock(&self.registers).is_occupied(slot)
    }

    /// Presses the guest's power button.
    pub(crate) fn press_button(&self) {
        lock(&self.registers).press_button();
        signal(&self.interrupt);
    }
}

fn signal(event: &EventFd) {
    if let Err(error) = event.write(1) {
        log::error!("cannot signal an eventfd of the slots: {error}");
    }
}

#[cfg(test)]
mod tests {
    use hotplug::Register;

    use super::*;

    #[test]
    fn an_emptied_slot_is_reported_once() {
        let control = SlotControl::new(Arc::new(PciBus::new(Vec::new()))).unwrap();
        let slot = Slot::new(SlotBus::Root, 9).unwrap();
        control.occupy(slot);
        let eject = |control: &SlotControl| {
            control.write(Register::Eject.offset().into(), &(1_u32 << 9).to_le_bytes());
        };
        eject(&control);
        assert_eq!(control.emptied(SlotBus::Root), BTreeSet::from([9]));
        assert_eq!(control.emptied(SlotBus::Switch(9)), BTreeSet::new());
        assert_eq!(control.take_emptied(), BTreeSet::from([slot]));
        assert_eq!(control.emptied(SlotBus::Root), BTreeSet::new());

        eject(&control);
        assert_eq!(control.take_emptied(), BTreeSet::new(), "it was empty");
    }
}
