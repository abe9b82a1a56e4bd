//! Interrupt vectors: from the device's signal to the message that the guest asked for.

use std::io;
use std::sync::Arc;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::pci::{PciBackend, VectorKind};
use crate::vmm::{MsiMessage, MsiRouter, RouteId};

/// What the guest has programmed: a kind, and per vector the message, `None` while masked.
pub(super) type Wanted = Option<(VectorKind, Vec<Option<MsiMessage>>)>;

struct Vector {
    event: EventFd,
    route: Option<(RouteId, MsiMessage)>,
}

/// The vectors that are on now.
pub(super) struct Interrupts {
    router: Arc<dyn MsiRouter>,
    on: Option<VectorKind>,
    vectors: Vec<Vector>,
}

impl Interrupts {
    pub(super) fn new(router: Arc<dyn MsiRouter>) -> Self {
        Self {
            router,
            on: None,
            vectors: Vec::new(),
        }
    }

    /// Makes the vectors what the guest wants. A masked vector keeps its signal pending.
    ///
    /// # Errors
    /// The errno of VFIO or of the hypervisor; interrupts are off then if a kind had to change.
    pub(super) fn apply(&mut self, device: &dyn PciBackend, wanted: Wanted) -> io::Result<()> {
        let same = wanted
            .as_ref()
            .is_some_and(|(kind, m)| self.on == Some(*kind) && m.len() == self.vectors.len());
        if !same {
            self.turn_off(device)?;
        }
        let Some((kind, messages)) = wanted else {
            return Ok(());
        };
        if same {
            return self.route(&messages);
        }
        for _ in &messages {
            let event = EventFd::new(EFD_NONBLOCK)?;
            self.vectors.push(Vector { event, route: None });
        }
        let result = self.route(&messages).and_then(|()| {
            let events: Vec<&EventFd> = self.vectors.iter().map(|v| &v.event).collect();
            device.enable_vectors(kind, &events)
        });
        match result {
            Ok(()) => {
                self.on = Some(kind);
                Ok(())
            }
            Err(error) => {
                self.unroute()?;
                Err(error)
            }
        }
    }

    fn route(&mut self, messages: &[Option<MsiMessage>]) -> io::Result<()> {
        for (vector, message) in self.vectors.iter_mut().zip(messages) {
            match (vector.route, *message) {
                (None, None) => {}
                (None, Some(new)) => {
                    let route = self.router.connect(&vector.event, new)?;
                    vector.route = Some((route, new));
                }
                (Some((route, old)), Some(new)) if old != new => {
                    self.router.update(route, new)?;
                    vector.route = Some((route, new));
                }
                (Some(_), Some(_)) => {}
                (Some((route, _)), None) => {
                    self.router.disconnect(route, &vector.event)?;
                    vector.route = None;
                }
            }
        }
        Ok(())
    }

    fn unroute(&mut self) -> io::Result<()> {
        let nothing = vec![None; self.vectors.len()];
        self.route(&nothing)?;
        self.vectors.clear();
        Ok(())
    }

    /// Turns all vectors off and forgets what was pending.
    pub(super) fn turn_off(&mut self, device: &dyn PciBackend) -> io::Result<()> {
        if let Some(kind) = self.on {
            device.disable_vectors(kind)?;
            self.on = None;
        }
        self.unroute()
    }
}
