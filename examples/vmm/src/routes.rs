//! KVM's interrupt routes: the pins of the I/O APIC, and messages.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KvmIrqRouting,
    kvm_irq_routing_entry,
};
use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::EventFd;

use crate::Result;

/// Pins of KVM's I/O APIC; messages have the numbers above.
const PINS: u32 = 24;

/// The routes of a VM, by number (GSI).
#[derive(Clone)]
pub struct Routes {
    vm: Arc<VmFd>,
    messages: Arc<Mutex<BTreeMap<u32, (u64, u32)>>>,
}

impl Routes {
    pub(crate) fn new(vm: Arc<VmFd>) -> Result<Self> {
        let routes = Self {
            vm,
            messages: Arc::default(),
        };
        routes.change(|_| ())?;
        Ok(routes)
    }

    /// Connects an eventfd to a pin of the I/O APIC.
    pub(crate) fn connect_pin(&self, event: &EventFd, pin: u32) -> Result<()> {
        Ok(self.vm.register_irqfd(event, pin)?)
    }

    /// Makes an eventfd send a message. Returns the number of the route.
    ///
    /// # Errors
    /// KVM refuses the route.
    pub fn connect(&self, event: &EventFd, address: u64, data: u32) -> Result<u32> {
        let gsi = self.change(|messages| {
            let gsi = (PINS..).find(|gsi| !messages.contains_key(gsi));
            let gsi = gsi.unwrap_or(PINS);
            messages.insert(gsi, (address, data));
            gsi
        })?;
        self.vm.register_irqfd(event, gsi)?;
        Ok(gsi)
    }

    /// Changes the message of a route.
    ///
    /// # Errors
    /// KVM refuses the message.
    pub fn update(&self, gsi: u32, address: u64, data: u32) -> Result<()> {
        self.change(|messages| {
            messages.insert(gsi, (address, data));
        })
    }

    /// Removes a route.
    ///
    /// # Errors
    /// KVM refuses.
    pub fn disconnect(&self, event: &EventFd, gsi: u32) -> Result<()> {
        self.vm.unregister_irqfd(event, gsi)?;
        self.change(|messages| {
            messages.remove(&gsi);
        })
    }

    /// Changes the table. KVM gets the whole table at every change.
    fn change<T>(&self, edit: impl FnOnce(&mut BTreeMap<u32, (u64, u32)>) -> T) -> Result<T> {
        let mut messages = self.messages.lock().unwrap_or_else(PoisonError::into_inner);
        let result = edit(&mut messages);
        let entry = |gsi, type_| kvm_irq_routing_entry {
            gsi,
            type_,
            ..Default::default()
        };
        let pin = |gsi| {
            let mut entry = entry(gsi, KVM_IRQ_ROUTING_IRQCHIP);
            entry.u.irqchip.irqchip = KVM_IRQCHIP_IOAPIC;
            entry.u.irqchip.pin = gsi;
            entry
        };
        let message = |(gsi, (address, data)): (&u32, &(u64, u32))| {
            let mut entry = entry(*gsi, KVM_IRQ_ROUTING_MSI);
            let [a, b, c, d, high @ ..] = address.to_le_bytes();
            entry.u.msi.address_lo = u32::from_le_bytes([a, b, c, d]);
            entry.u.msi.address_hi = u32::from_le_bytes(high);
            entry.u.msi.data = *data;
            entry
        };
        let table: Vec<_> = (0..PINS)
            .map(pin)
            .chain(messages.iter().map(message))
            .collect();
        let table = KvmIrqRouting::from_entries(&table).map_err(|error| format!("{error:?}"))?;
        self.vm.set_gsi_routing(&table)?;
        Ok(result)
    }
}
