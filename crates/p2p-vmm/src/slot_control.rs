//! The slot controller: registers in the guest's I/O space, an interrupt to the guest, and an eventfd that wakes the
//! main thread.
//!
//! A vCPU that ejects a slot removes its functions from the guest's PCI bus and wakes the main thread. The main
//! thread does what takes longer, such as closing the device.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex};

use hotplug::{Slot, SlotBus, SlotRegisters};
use vmm_sys_util::eventfd::EventFd;

use crate::irq::Gsi;
use crate::lock::lock;
use crate::pci::{PciBus, SharedFunction};

/// First port of the registers. The port number is ours; the DSDT names it.
pub(crate) const SLOT_PORT: u16 = 0x620;
/// The I/O APIC pin of the event device, which shares it with no other device.
pub(crate) const SLOT_GSI: Gsi = Gsi::ioapic_pin(9);

/// The guest's slots, shared by vCPUs and the main thread.
pub(crate) struct SlotControl {
    registers: Mutex<SlotRegisters>,
    pci: Arc<PciBus>,
    interrupt: EventFd,
    emptied: Mutex<Emptied>,
    wake: EventFd,
}

/// Slots that vCPUs have emptied. It keeps the removed functions, so that the main thread drops the last reference
/// and not a vCPU.
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

    /// Reads registers. Only double-word accesses are valid.
    pub(crate) fn read(&self, offset: u16, data: &mut [u8]) {
        match <&mut [u8; 4]>::try_from(&mut *data) {
            Ok(bytes) => *bytes = lock(&self.registers).read(offset).to_le_bytes(),
            Err(_) => data.fill(0xff),
        }
    }

    /// Writes registers. Only double-word accesses are valid.
    pub(crate) fn write(&self, offset: u16, data: &[u8]) {
        let Ok(bytes) = data.try_into() else {
            return;
        };
        let slots = lock(&self.registers).write(offset, u32::from_le_bytes(bytes));
        if slots.is_empty() {
            return;
        }
        // The slot is recorded as emptied before the bus shows it as free. Otherwise a new device could be plugged
        // into it in between and be taken for the ejected one.
        lock(&self.emptied).slots.extend(&slots);
        let functions: Vec<_> = slots.iter().flat_map(|s| self.pci.unplug(*s)).collect();
        lock(&self.emptied).functions.extend(functions);
        signal(&self.wake);
    }

    /// The slots that the guest has emptied since the last call.
    pub(crate) fn take_emptied(&self) -> BTreeSet<Slot> {
        // An event without a count is no error.
        let _ = self.wake.read();
        std::mem::take(&mut *lock(&self.emptied)).slots
    }

    /// The device numbers on `bus` that the guest has emptied since the last [`take_emptied`](Self::take_emptied).
    pub(crate) fn emptied(&self, bus: SlotBus) -> BTreeSet<u8> {
        let emptied = lock(&self.emptied);
        let here = emptied.slots.iter().filter(|slot| slot.bus() == bus);
        here.map(|slot| slot.device()).collect()
    }

    /// Records a device in `slot` without notifying the guest, which finds it at boot.
    pub(crate) fn occupy(&self, slot: Slot) {
        lock(&self.registers).occupy(slot);
    }

    /// Notifies the guest of a new device in `slot`.
    pub(crate) fn announce(&self, slot: Slot) {
        lock(&self.registers).announce(slot);
        signal(&self.interrupt);
    }

    /// Requests that the guest ejects the device in `slot`.
    pub(crate) fn request_unplug(&self, slot: Slot) {
        lock(&self.registers).request_unplug(slot);
        signal(&self.interrupt);
    }

    /// Withdraws the eject request. Returns whether the guest had not read it yet.
    pub(crate) fn withdraw_request(&self, slot: Slot) -> bool {
        lock(&self.registers).cancel_unplug(slot)
    }

    /// Removes the device in `slot` without a request to the guest. Returns whether the slot was occupied.
    pub(crate) fn remove(&self, slot: Slot) -> bool {
        let was_occupied = lock(&self.registers).vacate(slot);
        if was_occupied {
            drop(self.pci.unplug(slot));
        }
        was_occupied
    }

    /// Notifies the guest that a device on `bus` is gone.
    pub(crate) fn rescan(&self, bus: SlotBus) {
        lock(&self.registers).rescan(bus);
        signal(&self.interrupt);
    }

    /// Whether `slot` is occupied.
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
        log::error!("cannot signal an eventfd of the slot controller: {error}");
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
