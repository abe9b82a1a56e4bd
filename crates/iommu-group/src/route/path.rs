//! Paths of requests from one function to another.

use serde::{Deserialize, Serialize};

use super::BlockReason;
use super::model::{Ingress, RequestRoute, RoutingModel};
use super::root_complex;
use crate::Sbdf;
use crate::config::{PortType, Unreadable};
use crate::topology::FunctionId;

/// How the hardware carries a request from one function to a BAR of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Route {
    /// Directly across a switch or inside a device, untranslated: the hardware routes by the address that the initiator
    /// uses, and the request does not reach the IOMMU.
    SwitchLocal,
    /// Directly across a switch, but only translated requests: the initiator uses an address that it got from the
    /// IOMMU.
    SwitchLocalTranslated,
    /// Up to the root complex, through the IOMMU, and down again.
    HostBridge,
    /// The request does not arrive, or is not known to arrive.
    Blocked(BlockReason),
}

/// The path of a request, and the ports that decide it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Path {
    /// The route of the request.
    pub route: Route,
    /// The lowest bridge above both functions.
    pub common: Option<Sbdf>,
    /// The ingress of the request: a port directly below the common bridge, or the initiator itself.
    pub ingress: Option<Sbdf>,
    /// The port, or the target itself, through which the request leaves for the target.
    pub egress: Option<Sbdf>,
    /// Completions of direct reads go through the root complex (completion redirect).
    pub completions_detour: bool,
}

/// The point in the topology where the chains of two functions meet.
pub(super) struct Meeting {
    /// The lowest bridge above both; `None` if they share only the root complex.
    pub(super) common: Option<FunctionId>,
    /// The function at or above the initiator that is directly below `common`, or on its root bus.
    pub(super) ingress: FunctionId,
    /// The same for the target.
    pub(super) egress: FunctionId,
}

impl<'t> RoutingModel<'t> {
    /// The path of a request from `initiator` to a BAR of `target`.
    #[must_use]
    pub fn path(&self, initiator: Sbdf, target: Sbdf) -> Path {
        let blocked = |block| Path {
            route: Route::Blocked(block),
            common: None,
            ingress: None,
            egress: None,
            completions_detour: false,
        };
        let (from, to) = match (self.find(initiator), self.find(target)) {
            (None, _) => {
                return blocked(BlockReason::Missing {
                    function: initiator,
                });
            }
            (_, None) => return blocked(BlockReason::Missing { function: target }),
            (Some(from), Some(to)) => (from, to),
        };
        if from == to {
            return blocked(BlockReason::Itself);
        }
        for id in [from, to] {
            if self
                .function(id)
                .is_some_and(|function| function.is_bridge())
            {
                return blocked(BlockReason::NotADevice {
                    function: self.sbdf(id),
                });
            }
        }
        let meeting = self.meeting(from, to);
        let route = self.route_between(from, to, &meeting);
        let straight = matches!(route, Route::SwitchLocal | Route::SwitchLocalTranslated);
        Path {
            route,
            common: meeting.common.map(|id| self.sbdf(id)),
            ingress: Some(self.sbdf(meeting.ingress)),
            egress: Some(self.sbdf(meeting.egress)),
            completions_detour: straight && self.ingress(meeting.egress).redirects_completions(),
        }
    }

    /// The route of a request from `initiator` to a BAR of `target`.
    #[must_use]
    pub fn route(&self, initiator: Sbdf, target: Sbdf) -> Route {
        self.path(initiator, target).route
    }

    pub(super) fn meeting(&self, from: FunctionId, to: FunctionId) -> Meeting {
        let (mut up, mut down) = (self.chain(from), self.chain(to));
        let mut common = None;
        // Both chains end at the root: remove the part that they share.
        while let (Some(a), Some(b)) = (up.last().copied(), down.last().copied()) {
            if a != b || up.len() == 1 || down.len() == 1 {
                break;
            }
            common = Some(a);
            up.pop();
            down.pop();
        }
        Meeting {
            common,
            ingress: up.last().copied().unwrap_or(from),
            egress: down.last().copied().unwrap_or(to),
        }
    }

    fn route_between(&self, from: FunctionId, to: FunctionId, meeting: &Meeting) -> Route {
        if let Some(block) = self.obstacle(from, to, meeting) {
            return Route::Blocked(block);
        }
        let Some(common) = meeting.common else {
            return self.between_root_ports(from, to, meeting);
        };
        let ingress = self.ingress(meeting.ingress);
        let number = self.egress_number(meeting.egress);
        if self.one_device(common, meeting) {
            return self.inside_device(from, to, common, ingress, number);
        }
        match ingress.untranslated(number) {
            RequestRoute::Straight => Route::SwitchLocal,
            RequestRoute::Unknown(hidden) => self.unreadable(meeting.ingress, hidden),
            RequestRoute::Redirected | RequestRoute::Blocked
                if self.sends_translated(from, common)
                    && ingress.translated_goes_straight(number) =>
            {
                Route::SwitchLocalTranslated
            }
            RequestRoute::Redirected => {
                self.turn_around(from, to, self.topology().tree().parent(common))
            }
            RequestRoute::Blocked => Route::Blocked(BlockReason::EgressControl {
                port: self.sbdf(meeting.ingress),
                egress: self.sbdf(meeting.egress),
            }),
        }
    }

    fn unreadable(&self, id: FunctionId, hidden: Unreadable) -> Route {
        Route::Blocked(BlockReason::Unreadable {
            function: self.sbdf(id),
            hidden,
        })
    }

    /// What blocks the path regardless of the ports: bridges to conventional PCI, and buses that a function provides.
    fn obstacle(&self, from: FunctionId, to: FunctionId, meeting: &Meeting) -> Option<BlockReason> {
        let up_to = |id: FunctionId, last: FunctionId| {
            let mut chain = self.chain(id);
            if let Some(end) = chain.iter().position(|at| *at == last) {
                chain.truncate(end.saturating_add(1));
            }
            chain.into_iter().skip(1)
        };
        let bridges = up_to(from, meeting.ingress)
            .chain(up_to(to, meeting.egress))
            .chain(meeting.common);
        if let Some(block) = self.first_unfit(bridges) {
            return Some(block);
        }
        if meeting.common.is_some() {
            return None;
        }
        // The functions are on different sides of a provided bus, or have only root buses above them.
        self.provider(from)
            .or_else(|| self.provider(to))
            .map(|provider| BlockReason::ProvidedBus { provider })
    }

    /// The first of these bridges that does not route as PCI Express does.
    fn first_unfit(&self, mut bridges: impl Iterator<Item = FunctionId>) -> Option<BlockReason> {
        bridges.find_map(|bridge| match self.port_type(bridge) {
            PortType::PcieToPciBridge | PortType::PciToPcieBridge | PortType::Conventional => {
                Some(BlockReason::PciBridge {
                    bridge: self.sbdf(bridge),
                })
            }
            PortType::Unknown => {
                let hidden = self.function(bridge).and_then(|f| f.config().hidden);
                Some(BlockReason::Unreadable {
                    function: self.sbdf(bridge),
                    hidden: hidden.unwrap_or(Unreadable::Unreachable),
                })
            }
            _ => None,
        })
    }

    /// The function that provides the root bus above another one.
    fn provider(&self, id: FunctionId) -> Option<Sbdf> {
        let root = self.topology().tree().root_of(id);
        self.topology().root_buses().get(root)?.behind
    }

    /// Whether initiator and target are in functions of one device: a link has only one device below it.
    pub(super) fn one_device(&self, common: FunctionId, meeting: &Meeting) -> bool {
        if self.port_type(common).is_downstream() {
            return true;
        }
        let device = |id| self.sbdf(id).device();
        // Inside a switch every device number is a separate port.
        !self.port_type(meeting.ingress).is_downstream()
            && device(meeting.ingress) == device(meeting.egress)
    }

    /// Routes a request between functions of one device: inside the device only if it declares that it can, otherwise
    /// up the link and back.
    fn inside_device(
        &self,
        from: FunctionId,
        to: FunctionId,
        common: FunctionId,
        ingress: Ingress,
        number: Option<u8>,
    ) -> Route {
        let internal = ingress.implements(crate::AcsBits::RR);
        if internal && ingress.untranslated(number) == RequestRoute::Straight {
            return Route::SwitchLocal;
        }
        if internal
            && self.sends_translated(from, common)
            && ingress.translated_goes_straight(number)
        {
            return Route::SwitchLocalTranslated;
        }
        if let Ingress::Unreadable(hidden) = ingress {
            return self.unreadable(from, hidden);
        }
        self.turn_around(from, to, Some(common))
    }

    /// Routes a request that goes upstream although its target is below: every port on its way up must forward it.
    fn turn_around(&self, from: FunctionId, to: FunctionId, port: Option<FunctionId>) -> Route {
        let ports = port.map(|port| self.chain(port)).unwrap_or_default();
        if let Some(block) = self.first_unfit(ports.iter().copied()) {
            return Route::Blocked(block);
        }
        if let Some(provider) = self.provider(from) {
            return Route::Blocked(BlockReason::ProvidedBus { provider });
        }
        for port in ports
            .into_iter()
            .filter(|port| self.port_type(*port).is_downstream())
        {
            let ingress = self.ingress(port);
            if let Ingress::Unreadable(hidden) = ingress {
                return self.unreadable(port, hidden);
            }
            if ingress.forwards_upstream(self.port_type(port)) == Some(false) {
                return Route::Blocked(BlockReason::NoUpstreamForwarding {
                    port: self.sbdf(port),
                });
            }
        }
        self.through_root_complex(from, to)
    }

    fn between_root_ports(&self, from: FunctionId, to: FunctionId, meeting: &Meeting) -> Route {
        // The root complex routes between root ports, whether or not the request is redirected to the IOMMU. Only a
        // block matters here.
        let ingress = self.ingress(meeting.ingress);
        if ingress.untranslated(self.egress_number(meeting.egress)) == RequestRoute::Blocked {
            return Route::Blocked(BlockReason::EgressControl {
                port: self.sbdf(meeting.ingress),
                egress: self.sbdf(meeting.egress),
            });
        }
        self.through_root_complex(from, to)
    }

    fn through_root_complex(&self, from: FunctionId, to: FunctionId) -> Route {
        let topology = self.topology();
        if root_complex::cpu_routes(topology)
            || root_complex::listed(topology, self.kernel(), from, to)
        {
            return Route::HostBridge;
        }
        let root = |id| {
            topology
                .root_buses()
                .get(topology.tree().root_of(id))
                .copied()
        };
        match (root(from), root(to)) {
            (Some(from), Some(to)) => Route::Blocked(BlockReason::RootComplex { from, to }),
            _ => Route::Blocked(BlockReason::Missing {
                function: self.sbdf(from),
            }),
        }
    }

    /// Whether a function uses translated addresses and every port below `common` lets translated requests pass.
    pub(super) fn sends_translated(&self, from: FunctionId, common: FunctionId) -> bool {
        let on = self
            .function(from)
            .and_then(|f| f.config().ats)
            .is_some_and(|ats| ats.enabled);
        on && self
            .chain(from)
            .into_iter()
            .skip(1)
            .take_while(|port| *port != common)
            .all(|port| !self.ingress(port).blocks_translated())
    }
}
