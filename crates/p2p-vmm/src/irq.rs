//! Interrupts of the guest: KVM's GSI routing table and the eventfds that raise a GSI.
//!
//! GSIs 0 to 23 are the pins of the I/O APIC. Each of the others is routed to one message (MSI). There is no 8259,
//! which the MADT and the FADT say.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KvmIrqRouting,
    kvm_irq_routing_entry, kvm_irq_routing_entry__bindgen_ty_1, kvm_irq_routing_irqchip,
    kvm_irq_routing_msi, kvm_irq_routing_msi__bindgen_ty_1,
};
use kvm_ioctls::VmFd;
use p2p_vfio::{IntxLine, MsiMessage, MsiRouter, RouteId};
use vmm_sys_util::eventfd::EventFd;

use crate::lock::lock;

/// Pins of KVM's I/O APIC, and the first GSI for messages.
const IOAPIC_PINS: u32 = 24;
/// Size of KVM's routing table (linux 7.2 include/linux/kvm_host.h: KVM_MAX_IRQ_ROUTES).
const MAX_ROUTES: u32 = 4096;

/// Global system interrupt: index into KVM's routing table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Gsi(u32);

impl Gsi {
    /// The GSI of a pin of the I/O APIC, 0 to 23.
    pub(crate) const fn ioapic_pin(pin: u8) -> Self {
        assert!((pin as u32) < IOAPIC_PINS, "the I/O APIC has 24 pins");
        Self(pin as u32)
    }

    /// The number for KVM and ACPI.
    pub(crate) fn number(self) -> u32 {
        self.0
    }
}

/// An interrupt could not be set up or released.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IrqError {
    #[error("all {MAX_ROUTES} entries of KVM's interrupt routing table are in use")]
    Exhausted,
    #[error("GSI {gsi} is not allocated")]
    NotAllocated { gsi: u32 },
    #[error("cannot set KVM's interrupt routing table of {entries} entries")]
    SetRouting {
        entries: usize,
        source: kvm_ioctls::Error,
    },
    #[error("the interrupt routing table of {entries} entries is too long")]
    TableTooLong { entries: usize },
    #[error("cannot connect an eventfd to GSI {gsi}")]
    Attach { gsi: u32, source: kvm_ioctls::Error },
    #[error("cannot disconnect an eventfd from GSI {gsi}")]
    Detach { gsi: u32, source: kvm_ioctls::Error },
}

/// The routing table of a VM. KVM gets the whole table at every change.
#[derive(Debug)]
pub(crate) struct KvmRoutes {
    vm: Arc<VmFd>,
    /// Allocated GSIs; `None` until a message is set.
    messages: Mutex<BTreeMap<Gsi, Option<MsiMessage>>>,
}

impl KvmRoutes {
    /// Sets the routing table of `vm` and connects the pins of the I/O APIC.
    pub(crate) fn new(vm: Arc<VmFd>) -> Result<Self, IrqError> {
        let router = Self {
            vm,
            messages: Mutex::new(BTreeMap::new()),
        };
        router.commit(&BTreeMap::new())?;
        Ok(router)
    }

    /// Allocates a GSI for a message. It has no route until [`Self::set`].
    pub(crate) fn allocate(&self) -> Result<Gsi, IrqError> {
        let mut messages = lock(&self.messages);
        let gsi = lowest_free(&messages).ok_or(IrqError::Exhausted)?;
        messages.insert(gsi, None);
        Ok(gsi)
    }

    /// Routes an allocated GSI to `message`.
    pub(crate) fn set(&self, gsi: Gsi, message: MsiMessage) -> Result<(), IrqError> {
        self.change(gsi, |messages| {
            messages.insert(gsi, Some(message));
        })
    }

    /// Frees an allocated GSI; its eventfds must have been detached.
    pub(crate) fn free(&self, gsi: Gsi) -> Result<(), IrqError> {
        self.change(gsi, |messages| {
            messages.remove(&gsi);
        })
    }

    /// Connects `event` to `gsi`: a write to `event` raises it.
    pub(crate) fn attach(&self, gsi: Gsi, event: &EventFd) -> Result<(), IrqError> {
        self.vm
            .register_irqfd(event, gsi.0)
            .map_err(|source| IrqError::Attach { gsi: gsi.0, source })
    }

    /// Disconnects `event` from `gsi`.
    pub(crate) fn detach(&self, gsi: Gsi, event: &EventFd) -> Result<(), IrqError> {
        self.vm
            .unregister_irqfd(event, gsi.0)
            .map_err(|source| IrqError::Detach { gsi: gsi.0, source })
    }

    /// Number of routes to messages.
    pub(crate) fn message_count(&self) -> usize {
        lock(&self.messages).len()
    }

    /// Changes the table, in KVM first: if KVM refuses, nothing changes.
    fn change(
        &self,
        gsi: Gsi,
        edit: impl FnOnce(&mut BTreeMap<Gsi, Option<MsiMessage>>),
    ) -> Result<(), IrqError> {
        let mut messages = lock(&self.messages);
        if !messages.contains_key(&gsi) {
            return Err(IrqError::NotAllocated { gsi: gsi.0 });
        }
        let mut changed = messages.clone();
        edit(&mut changed);
        self.commit(&changed)?;
        *messages = changed;
        Ok(())
    }

    fn commit(&self, messages: &BTreeMap<Gsi, Option<MsiMessage>>) -> Result<(), IrqError> {
        let entries = routing_table(messages);
        let table = KvmIrqRouting::from_entries(&entries).map_err(|_| IrqError::TableTooLong {
            entries: entries.len(),
        })?;
        self.vm
            .set_gsi_routing(&table)
            .map_err(|source| IrqError::SetRouting {
                entries: entries.len(),
                source,
            })
    }
}

impl MsiRouter for KvmRoutes {
    fn connect(&self, event: &EventFd, message: MsiMessage) -> io::Result<RouteId> {
        let gsi = self.allocate()?;
        let connected = self
            .set(gsi, message)
            .and_then(|()| self.attach(gsi, event));
        if let Err(error) = connected {
            self.free(gsi)?;
            return Err(error.into());
        }
        Ok(RouteId(gsi.0))
    }

    fn update(&self, route: RouteId, message: MsiMessage) -> io::Result<()> {
        Ok(self.set(Gsi(route.0), message)?)
    }

    fn disconnect(&self, route: RouteId, event: &EventFd) -> io::Result<()> {
        self.detach(Gsi(route.0), event)?;
        Ok(self.free(Gsi(route.0))?)
    }
}

/// A level-triggered pin of the I/O APIC, for one of the devices that share it.
#[derive(Debug)]
pub(crate) struct KvmLine {
    routes: Arc<KvmRoutes>,
    gsi: Gsi,
}

impl KvmLine {
    pub(crate) fn new(routes: Arc<KvmRoutes>, gsi: Gsi) -> Self {
        Self { routes, gsi }
    }
}

impl IntxLine for KvmLine {
    fn connect(&self, raised: &EventFd, handled: &EventFd) -> io::Result<()> {
        let gsi = self.gsi.0;
        let vm = &self.routes.vm;
        vm.register_irqfd_with_resample(raised, handled, gsi)
            .map_err(|source| IrqError::Attach { gsi, source }.into())
    }

    fn disconnect(&self, raised: &EventFd, _handled: &EventFd) -> io::Result<()> {
        Ok(self.routes.detach(self.gsi, raised)?)
    }
}

impl From<IrqError> for io::Error {
    fn from(error: IrqError) -> Self {
        let errno = match &error {
            IrqError::SetRouting { source, .. }
            | IrqError::Attach { source, .. }
            | IrqError::Detach { source, .. } => source.errno(),
            IrqError::Exhausted | IrqError::TableTooLong { .. } => libc::ENOSPC,
            IrqError::NotAllocated { .. } => libc::ENOENT,
        };
        Self::from_raw_os_error(errno)
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the lower half is meant")]
fn low_half(address: u64) -> u32 {
    address as u32
}

/// The lowest free GSI for messages.
fn lowest_free(used: &BTreeMap<Gsi, Option<MsiMessage>>) -> Option<Gsi> {
    (IOAPIC_PINS..MAX_ROUTES)
        .map(Gsi)
        .find(|gsi| !used.contains_key(gsi))
}

/// KVM's table: the pins of the I/O APIC, then the messages.
fn routing_table(messages: &BTreeMap<Gsi, Option<MsiMessage>>) -> Vec<kvm_irq_routing_entry> {
    let pins = (0..IOAPIC_PINS).map(|pin| kvm_irq_routing_entry {
        gsi: pin,
        type_: KVM_IRQ_ROUTING_IRQCHIP,
        u: kvm_irq_routing_entry__bindgen_ty_1 {
            irqchip: kvm_irq_routing_irqchip {
                irqchip: KVM_IRQCHIP_IOAPIC,
                pin,
            },
        },
        ..Default::default()
    });
    let messages = messages.iter().filter_map(|(gsi, message)| {
        message.map(|message| kvm_irq_routing_entry {
            gsi: gsi.0,
            type_: KVM_IRQ_ROUTING_MSI,
            u: kvm_irq_routing_entry__bindgen_ty_1 {
                msi: kvm_irq_routing_msi {
                    address_lo: low_half(message.address),
                    address_hi: low_half(message.address >> 32),
                    data: message.data,
                    __bindgen_anon_1: kvm_irq_routing_msi__bindgen_ty_1::default(),
                },
            },
            ..Default::default()
        })
    });
    pins.chain(messages).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_has_all_pins_and_only_messages_that_are_set() {
        let message = MsiMessage {
            address: 0xfee0_1000,
            data: 0x41,
        };
        let messages = BTreeMap::from([(Gsi(24), None), (Gsi(25), Some(message))]);

        let table = routing_table(&messages);

        assert_eq!(table.len(), 25);
        assert!(table.iter().take(24).enumerate().all(|(pin, entry)| {
            entry.gsi == u32::try_from(pin).unwrap() && entry.type_ == KVM_IRQ_ROUTING_IRQCHIP
        }));
        assert_eq!(table[24].gsi, 25);
        assert_eq!(table[24].type_, KVM_IRQ_ROUTING_MSI);
    }

    #[test]
    fn messages_use_the_lowest_free_number_above_the_pins() {
        let mut used = BTreeMap::new();
        assert_eq!(lowest_free(&used), Some(Gsi(24)));
        used.extend([(Gsi(24), None), (Gsi(26), None)]);
        assert_eq!(lowest_free(&used), Some(Gsi(25)));
        used.extend((IOAPIC_PINS..MAX_ROUTES).map(|gsi| (Gsi(gsi), None)));
        assert_eq!(lowest_free(&used), None);
    }
}
