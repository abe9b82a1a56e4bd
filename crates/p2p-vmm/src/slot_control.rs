//! The slot controller: registers in the guest's I/O space, an interrupt to the guest, and an eventfd that wakes the
//! main thread.
//!
//! A vCPU that ejects a slot takes its functions off the guest's PCI bus and wakes the main thread. The main thread
//! does what takes longer, such as closing the device.

use std::io;
use std::sync::{Arc, Mutex};

use guest_topology::{Slot, SlotBus};
use hotplug::SlotRegisters;
use p2p_vfio::DeviceSet;
use vmm_sys_util::eventfd::EventFd;

use crate::irq::Gsi;
use crate::lock::lock;

/// First port of the registers. The port number is ours; the DSDT names it.
pub(crate) const SLOT_PORT: u16 = 0x620;
/// The I/O APIC pin of the event device, which shares it with no other device.
pub(crate) const SLOT_GSI: Gsi = Gsi::ioapic_pin(9);

/// The guest's slots, shared by vCPUs and the main thread.
pub(crate) struct SlotControl {
    registers: Mutex<SlotRegisters>,
    devices: Arc<DeviceSet>,
    interrupt: EventFd,
    wake: EventFd,
}

impl SlotControl {
    pub(crate) fn new(devices: Arc<DeviceSet>) -> io::Result<Self> {
        let event = || EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC);
        Ok(Self {
            registers: Mutex::default(),
            devices,
            interrupt: event()?,
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
        slots.into_iter().for_each(|slot| self.devices.eject(slot));
        signal(&self.wake);
    }

    /// Makes [`wake`](Self::wake) unreadable until the guest empties another slot.
    pub(crate) fn clear_wake(&self) {
        // An event without a count is no error.
        let _ = self.wake.read();
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
            self.devices.unplug(slot);
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
