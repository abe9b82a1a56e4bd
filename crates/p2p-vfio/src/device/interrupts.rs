//! Interrupts: from the device's signal to the interrupt that the guest programmed.
//!
//! One of three kinds is on at a time: the pin, MSI or MSI-X. The host allocates only the vectors that the guest uses:
//! with dynamic MSI-X one by one, otherwise all up to the highest in use.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io;
use std::sync::Arc;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::descriptors::DescriptorLimit;
use crate::pci::{Line, PciBackend, VectorKind};
use crate::vmm::{IntxLine, MsiMessage, MsiRouter, RouteId};

/// The interrupts that the guest has programmed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    Off,
    /// The pin INTA.
    Line,
    /// Message of every vector, `None` while masked.
    Vectors(VectorKind, Vec<Option<MsiMessage>>),
}

struct Vector {
    event: EventFd,
    route: Option<(RouteId, MsiMessage)>,
}

struct Pin {
    raised: EventFd,
    handled: EventFd,
}

/// The interrupts that are on now.
pub(super) struct Interrupts {
    router: Arc<dyn MsiRouter>,
    fds: DescriptorLimit,
    line: Option<Arc<dyn IntxLine>>,
    pin: Option<Pin>,
    /// The kind of vectors that is on in the device.
    on: Option<VectorKind>,
    vectors: BTreeMap<u32, Vector>,
    /// Number of vectors that the host has allocated.
    given: u32,
}

impl Interrupts {
    pub(super) fn new(
        router: Arc<dyn MsiRouter>,
        fds: DescriptorLimit,
        line: Option<Arc<dyn IntxLine>>,
    ) -> Self {
        Self {
            router,
            fds,
            line,
            pin: None,
            on: None,
            vectors: BTreeMap::new(),
            given: 0,
        }
    }

    /// Sets up the interrupts that the guest has programmed. A masked vector keeps its signal pending.
    ///
    /// # Errors
    /// The errno of VFIO or of the hypervisor. Vectors that worked before still work. Vectors that could not be set up
    /// are off, and the next change by the guest tries again.
    pub(super) fn apply(&mut self, device: &dyn PciBackend, wanted: &Wanted) -> io::Result<()> {
        match wanted {
            Wanted::Off => self.turn_off(device),
            Wanted::Line if self.pin.is_some() => Ok(()),
            Wanted::Line => {
                self.turn_off(device)?;
                self.pin_on(device)
            }
            Wanted::Vectors(kind, messages) => {
                // The guest can change which entries of the MSI-X table are in use, but not the size of the table.
                let same = *kind == VectorKind::Msix || self.given == count(messages);
                if self.on != Some(*kind) || !same {
                    self.turn_off(device)?;
                }
                self.vectors_on(device, *kind, messages)
            }
        }
    }

    fn pin_on(&mut self, device: &dyn PciBackend) -> io::Result<()> {
        let Some(line) = &self.line else {
            return Ok(());
        };
        let pin = Pin {
            raised: EventFd::new(EFD_NONBLOCK)?,
            handled: EventFd::new(EFD_NONBLOCK)?,
        };
        line.connect(&pin.raised, &pin.handled)?;
        let on = device.set_line(Some(Line {
            raised: &pin.raised,
            handled: &pin.handled,
        }));
        let pin = self.pin.insert(pin);
        if on.is_err() {
            line.disconnect(&pin.raised, &pin.handled)?;
            self.pin = None;
        }
        on
    }

    fn vectors_on(
        &mut self,
        device: &dyn PciBackend,
        kind: VectorKind,
        messages: &[Option<MsiMessage>],
    ) -> io::Result<()> {
        let dynamic = kind == VectorKind::Msix && device.vectors(kind).dynamic;
        let used = (0_u32..)
            .zip(messages)
            .filter(|(n, message)| {
                // The first vector is always allocated: without any vector, the kind would be off in the device.
                kind == VectorKind::Msi || *n == 0 || message.is_some()
            })
            .map(|(n, _)| n);
        let mut new = Vec::new();
        let mut without = None;
        for n in used {
            if let Entry::Vacant(place) = self.vectors.entry(n) {
                match self.fds.eventfd() {
                    Ok(event) => {
                        place.insert(Vector { event, route: None });
                        new.push(n);
                    }
                    // The vector stays masked; the other vectors are set up.
                    Err(error) => without = without.or(Some((n, error))),
                }
            }
        }
        // Set up routes first: a signal that comes at once must not be lost.
        let result = self.route(messages).and_then(|()| {
            let most = match kind {
                VectorKind::Msi => count(messages),
                // At least one: without any vector, the kind would be off in the device.
                VectorKind::Msix => self.vectors.keys().next_back().map_or(1, |n| n + 1),
            };
            if self.on.is_some() && !dynamic && most > self.given {
                device.disable_vectors(kind)?;
                self.on = None;
            }
            if self.on.is_none() {
                self.give_all(device, kind, if dynamic { 1 } else { most })?;
                let others: Vec<u32> = self.vectors.keys().copied().filter(|n| *n > 0).collect();
                if dynamic {
                    self.give(device, kind, &others)?;
                }
                Ok(())
            } else {
                self.give(device, kind, &new)
            }
        });
        if result.is_err() {
            self.withdraw(device, &new);
        }
        if self.on.is_none() {
            self.turn_off(device)?;
        }
        result?;
        match without {
            None => Ok(()),
            Some((n, error)) => Err(io::Error::other(format!(
                "no descriptor is left for vector {n} (RLIMIT_NOFILE): {error}"
            ))),
        }
    }

    /// Turns the kind on in the device with its first `first` vectors.
    fn give_all(
        &mut self,
        device: &dyn PciBackend,
        kind: VectorKind,
        first: u32,
    ) -> io::Result<()> {
        let events: Vec<_> = (0..first)
            .map(|n| self.vectors.get(&n).map(|vector| &vector.event))
            .collect();
        device.set_vectors(kind, 0, &events)?;
        (self.on, self.given) = (Some(kind), first);
        Ok(())
    }

    /// Allocates single vectors of a kind that is on.
    fn give(&mut self, device: &dyn PciBackend, kind: VectorKind, which: &[u32]) -> io::Result<()> {
        for n in which {
            let event = self.vectors.get(n).map(|vector| &vector.event);
            device.set_vectors(kind, *n, &[event])?;
            self.given = self.given.max(n.saturating_add(1));
        }
        Ok(())
    }

    fn route(&mut self, messages: &[Option<MsiMessage>]) -> io::Result<()> {
        for (n, vector) in &mut self.vectors {
            let message = usize::try_from(*n).ok().and_then(|n| messages.get(n));
            vector.route(&*self.router, message.copied().flatten())?;
        }
        Ok(())
    }

    /// Removes vectors that could not be set up.
    fn withdraw(&mut self, device: &dyn PciBackend, which: &[u32]) {
        for n in which {
            if let Some(kind) = self.on
                && *n < self.given
                && let Err(error) = device.set_vectors(kind, *n, &[None])
            {
                log::debug!("while undoing: {error}");
            }
            if let Some(mut vector) = self.vectors.remove(n)
                && let Err(error) = vector.route(&*self.router, None)
            {
                // Closing the eventfd also ends delivery. Logged at debug level because the guest can repeat this.
                log::debug!("while undoing: {error}");
            }
        }
    }

    /// Turns all interrupts off and drops pending signals.
    ///
    /// # Errors
    /// The first failure. What could not be turned off is kept, and the next call tries again.
    pub(super) fn turn_off(&mut self, device: &dyn PciBackend) -> io::Result<()> {
        if let (Some(pin), Some(line)) = (&self.pin, &self.line) {
            device.set_line(None)?;
            line.disconnect(&pin.raised, &pin.handled)?;
            self.pin = None;
        }
        if let Some(kind) = self.on {
            device.disable_vectors(kind)?;
            self.on = None;
        }
        self.route(&[])?;
        self.vectors.clear();
        self.given = 0;
        Ok(())
    }
}

fn count(messages: &[Option<MsiMessage>]) -> u32 {
    u32::try_from(messages.len()).unwrap_or(u32::MAX)
}

impl Vector {
    /// Delivers `message` from now on; `None` ends delivery.
    fn route(&mut self, router: &dyn MsiRouter, message: Option<MsiMessage>) -> io::Result<()> {
        match (self.route, message) {
            (None, None) => {}
            (None, Some(new)) => self.route = Some((router.connect(&self.event, new)?, new)),
            (Some((route, old)), Some(new)) => {
                if old != new {
                    router.update(route, new)?;
                    self.route = Some((route, new));
                }
            }
            (Some((route, _)), None) => {
                router.disconnect(route, &self.event)?;
                self.route = None;
            }
        }
        Ok(())
    }
}
