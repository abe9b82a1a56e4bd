//! The routing model: the ports of a machine and how they route requests.

use std::collections::BTreeMap;

use crate::config::{Acs, AcsBits, EgressVector, PortType, Unreadable};
use crate::kernel::Kernel;
use crate::quirks::acs::{self, AcsRule};
use crate::topology::FunctionId;
use crate::{Function, GroupModel, Sbdf, Topology};

/// What a port does with requests from below, or a function of a multifunction device with its own requests.
#[derive(Debug, Clone, Copy)]
pub(super) enum Ingress {
    /// It has no ACS and routes by address.
    Plain,
    /// It has ACS, with these bits implemented and set.
    Acs {
        implemented: AcsBits,
        on: AcsBits,
        egress: Option<EgressVector>,
    },
    /// It has no ACS, but its vendor states that it isolates functions by other means.
    Apart,
    /// It could not be read.
    Unreadable(Unreadable),
}

/// Where a port sends an untranslated request with the address of another port or function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RequestRoute {
    /// Directly to the target.
    Straight,
    /// Upstream.
    Redirected,
    /// The port blocks the request.
    Blocked,
    /// Unknown, because the port could not be read.
    Unknown(Unreadable),
}

impl Ingress {
    /// Whether a bit is implemented and set.
    pub(super) fn has(&self, bit: AcsBits) -> bool {
        matches!(self, Self::Acs { on, .. } if on.contains(bit))
    }

    /// Whether a bit is implemented.
    pub(super) fn implements(&self, bit: AcsBits) -> bool {
        matches!(self, Self::Acs { implemented, .. } if implemented.contains(bit))
    }

    /// Routes an untranslated request whose address belongs to the port or function with this number in egress control
    /// vectors (PCIe r6.0 §6.12.3: interaction of request redirect and egress control).
    pub(super) fn untranslated(&self, egress_number: Option<u8>) -> RequestRoute {
        match self {
            Self::Plain => RequestRoute::Straight,
            Self::Apart => RequestRoute::Redirected,
            Self::Unreadable(hidden) => RequestRoute::Unknown(*hidden),
            Self::Acs { egress, .. } => {
                let redirect = self.has(AcsBits::RR);
                let stops = if self.has(AcsBits::EC) {
                    egress
                        .zip(egress_number)
                        .and_then(|(vector, number)| vector.stops(number))
                } else {
                    Some(redirect)
                };
                match (stops, redirect) {
                    // The vector could not be read, or it has no bit for this number, so the route is unknown.
                    (None, _) => RequestRoute::Unknown(Unreadable::Truncated),
                    (Some(false), _) => RequestRoute::Straight,
                    (Some(true), true) => RequestRoute::Redirected,
                    (Some(true), false) => RequestRoute::Blocked,
                }
            }
        }
    }

    /// Whether a translated request goes directly to its target. It does so if an untranslated one does or if Direct
    /// Translated P2P is set, unless translated requests are blocked.
    pub(super) fn translated_goes_straight(&self, egress_number: Option<u8>) -> bool {
        !self.has(AcsBits::TB)
            && (self.has(AcsBits::DT) || self.untranslated(egress_number) == RequestRoute::Straight)
    }

    /// Whether completions without Relaxed Ordering go upstream.
    pub(super) fn redirects_completions(&self) -> bool {
        self.has(AcsBits::CR)
    }

    /// Whether translated requests are blocked.
    pub(super) fn blocks_translated(&self) -> bool {
        self.has(AcsBits::TB)
    }

    /// Whether a request from below that is addressed below this port is forwarded upstream. `None` if the root complex
    /// decides.
    pub(super) fn forwards_upstream(&self, port_type: PortType) -> Option<bool> {
        if self.implements(AcsBits::UF) {
            return Some(self.has(AcsBits::UF));
        }
        if port_type == PortType::RootPort {
            None
        } else {
            Some(false)
        }
    }
}

/// Routing model of a machine: its topology and the ACS registers at one moment.
///
/// It computes routes, reach and exposures. It is built from a topology as found, or from a [`GroupModel`] after
/// changes.
#[derive(Debug, Clone)]
pub struct RoutingModel<'t> {
    topology: &'t Topology,
    kernel: Kernel,
    /// The control register of each function and whether the function is present; `None` if the machine is as found.
    changed: Option<Vec<(bool, AcsBits)>>,
    /// Egress control vectors that differ from those found.
    egress: BTreeMap<Sbdf, EgressVector>,
}

impl<'t> RoutingModel<'t> {
    /// The model of the machine as found.
    #[must_use]
    pub fn found(topology: &'t Topology) -> Self {
        Self {
            topology,
            kernel: Kernel::of(topology),
            changed: None,
            egress: BTreeMap::new(),
        }
    }

    /// The model of the machine in the state of a group model.
    #[must_use]
    pub fn of(model: &GroupModel<'t>) -> Self {
        Self {
            topology: model.topology(),
            kernel: model.kernel().clone(),
            changed: Some(model.presence_and_control().collect()),
            egress: model.written_egress().clone(),
        }
    }

    /// The topology.
    #[must_use]
    pub fn topology(&self) -> &'t Topology {
        self.topology
    }

    pub(super) fn kernel(&self) -> &Kernel {
        &self.kernel
    }

    /// The function with this address, if it is present.
    pub(super) fn find(&self, sbdf: Sbdf) -> Option<FunctionId> {
        self.topology.id(sbdf).filter(|id| self.is_present(*id))
    }

    pub(super) fn is_present(&self, id: FunctionId) -> bool {
        match &self.changed {
            None => true,
            Some(changed) => changed.get(id.index()).is_some_and(|(present, _)| *present),
        }
    }

    pub(super) fn function(&self, id: FunctionId) -> Option<&'t Function> {
        self.topology.function(id)
    }

    pub(super) fn sbdf(&self, id: FunctionId) -> Sbdf {
        self.function(id)
            .map_or(Sbdf::from_devfn(0, 0, 0), Function::sbdf)
    }

    pub(super) fn port_type(&self, id: FunctionId) -> PortType {
        self.function(id)
            .map_or(PortType::Unknown, Function::port_type)
    }

    /// The control register of a function with an ACS capability.
    pub(super) fn control(&self, id: FunctionId) -> Option<AcsBits> {
        let registers = self.function(id)?.acs().registers()?;
        Some(match &self.changed {
            None => registers.control,
            Some(changed) => changed.get(id.index())?.1,
        })
    }

    /// What a function does with requests from below, or with its own requests.
    pub(super) fn ingress(&self, id: FunctionId) -> Ingress {
        let Some(function) = self.function(id) else {
            return Ingress::Plain;
        };
        if function.port_type() == PortType::Unknown {
            return Ingress::Unreadable(
                function.config().hidden.unwrap_or(Unreadable::Unreachable),
            );
        }
        match function.acs() {
            Acs::Unknown(hidden) => Ingress::Unreadable(*hidden),
            Acs::Absent => match acs::rule(function.ids(), function.port_type()) {
                Some(AcsRule::Isolated(_)) => Ingress::Apart,
                Some(AcsRule::IntelPch) if self.kernel.requests_acs => Ingress::Apart,
                _ => Ingress::Plain,
            },
            Acs::Known(registers) => Ingress::Acs {
                implemented: registers.capability,
                on: self.control(id).unwrap_or(registers.control) & registers.capability,
                egress: self
                    .egress
                    .get(&function.sbdf())
                    .copied()
                    .or(registers.egress),
            },
        }
    }

    /// The number of a function in the egress control vectors of ports or functions beside it: a port's own number, or
    /// the number of a function within its device (PCIe r6.0 §7.7.11.4).
    pub(super) fn egress_number(&self, id: FunctionId) -> Option<u8> {
        let function = self.function(id)?;
        if function.port_type().is_downstream() {
            return function.config().express?.link.map(|link| link.port_number);
        }
        match function.config().ari {
            Some(ari) if ari.acs_function_groups => Some(ari.function_group),
            Some(_) => Some(function.sbdf().devfn()),
            None => Some(function.sbdf().function()),
        }
    }

    /// The number of a port in the egress control vectors of the ports beside it.
    pub(crate) fn egress_port_number(&self, port: Sbdf) -> Option<u8> {
        self.egress_number(self.find(port)?)
    }

    /// Whether untranslated requests that arrive at `port` go directly to `other`, a port of the same switch.
    pub(crate) fn goes_straight(&self, port: Sbdf, other: Sbdf) -> bool {
        let (Some(port), Some(other)) = (self.find(port), self.find(other)) else {
            return false;
        };
        let turn = self.ingress(port).untranslated(self.egress_number(other));
        self.port_type(port).is_downstream() && turn == RequestRoute::Straight
    }

    /// A function and the bridges above it, the lowest first.
    pub(super) fn chain(&self, id: FunctionId) -> Vec<FunctionId> {
        std::iter::once(id)
            .chain(self.topology.tree().ancestors(id))
            .collect()
    }
}
