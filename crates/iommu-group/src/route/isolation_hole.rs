//! Isolation holes: paths between functions that bypass the IOMMU.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::model::{Ingress, RequestRoute, RoutingModel};
use super::path::Meeting;
use crate::config::{AcsBits, PortType};
use crate::sbdf::List;
use crate::topology::FunctionId;
use crate::{Groups, Sbdf};

/// Whether requests of a function can reach another function without the IOMMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "schema", schemars(rename = "Reach"))]
pub enum UntranslatedReach {
    /// No: a function on the path prevents it.
    No,
    /// The specification leaves it to the root complex or the device.
    Perhaps,
    /// Yes.
    Yes,
    /// A function on the path could not be read.
    Unknown,
}

/// A path across a switch that bypasses the IOMMU, between functions that Linux has in different groups. The owner of
/// one function can reach the other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "schema", schemars(rename = "Leak"))]
pub struct IsolationHole {
    /// The upstream port of the switch.
    pub switch: Sbdf,
    /// The port that does not redirect the requests that it receives from below.
    pub port: Sbdf,
    /// The port of the same switch that the requests reach.
    pub into: Sbdf,
    /// The devices below `port`.
    pub from: Vec<Sbdf>,
    /// The devices below `into` that are in a different group from at least one of `from`.
    pub exposed: Vec<Sbdf>,
}

impl fmt::Display for IsolationHole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "switch {} routes from {} to {} without the IOMMU, though they are in different groups",
            self.switch,
            List(&self.from),
            List(&self.exposed)
        )
    }
}

impl RoutingModel<'_> {
    /// Whether untranslated requests of `from` can reach `to` without the IOMMU, by the rules of PCI Express. If in
    /// doubt, the answer is not `No`.
    #[must_use]
    pub fn reach(&self, from: Sbdf, to: Sbdf) -> UntranslatedReach {
        self.gap(from, to)
            .map_or(UntranslatedReach::No, |(reach, _)| reach)
    }

    /// How untranslated requests of `from` can reach `to` without the IOMMU, and the function at which they bypass it;
    /// `None` if they cannot.
    pub(super) fn gap(&self, from: Sbdf, to: Sbdf) -> Option<(UntranslatedReach, Sbdf)> {
        let (from, to) = (self.find(from)?, self.find(to)?);
        if from == to {
            return None;
        }
        let meeting = self.meeting(from, to);
        let (reach, at) = match meeting.common {
            None => {
                let reach = self.reach_between_root_ports(meeting.ingress, meeting.egress);
                (reach, meeting.ingress)
            }
            Some(common) => self.reach_below(common, from, to, &meeting),
        };
        (reach != UntranslatedReach::No).then(|| (reach, self.sbdf(at)))
    }

    /// The same for functions below a common bridge.
    fn reach_below(
        &self,
        common: FunctionId,
        from: FunctionId,
        to: FunctionId,
        meeting: &Meeting,
    ) -> (UntranslatedReach, FunctionId) {
        match self.port_type(common) {
            // All functions on a conventional bus share it.
            PortType::PcieToPciBridge | PortType::PciToPcieBridge | PortType::Conventional => {
                return (UntranslatedReach::Yes, common);
            }
            PortType::Unknown => return (UntranslatedReach::Unknown, common),
            _ => {}
        }
        let ingress = self.ingress(meeting.ingress);
        let turn = ingress.untranslated(self.egress_number(meeting.egress));
        let reach = if self.one_device(common, meeting) {
            self.reach_inside_device(from, to, ingress, turn)
        } else {
            match turn {
                RequestRoute::Straight => UntranslatedReach::Yes,
                RequestRoute::Redirected | RequestRoute::Blocked => UntranslatedReach::No,
                RequestRoute::Unknown(_) => UntranslatedReach::Unknown,
            }
        };
        (reach, meeting.ingress)
    }

    /// A device that can route between its functions must have ACS with request redirect (PCIe r6.0 §6.12.1.2), so a
    /// device without ACS should not do so. Linux does not rely on this, and neither does this code. Virtual functions
    /// without ACS are taken as isolated, as in Linux.
    fn reach_inside_device(
        &self,
        from: FunctionId,
        to: FunctionId,
        ingress: Ingress,
        turn: RequestRoute,
    ) -> UntranslatedReach {
        if let Ingress::Unreadable(_) = ingress {
            return UntranslatedReach::Unknown;
        }
        if ingress.implements(AcsBits::RR) {
            return if turn == RequestRoute::Straight {
                UntranslatedReach::Yes
            } else {
                UntranslatedReach::No
            };
        }
        let is_virtual = |id| self.function(id).is_some_and(|f| f.is_virtual());
        match ingress {
            Ingress::Plain if !is_virtual(from) && !is_virtual(to) => UntranslatedReach::Perhaps,
            _ => UntranslatedReach::No,
        }
    }

    /// The root complex decides whether requests from a root port reach others, unless ACS of the port redirects them.
    /// An unreadable port does not make the answer more certain.
    fn reach_between_root_ports(
        &self,
        ingress: FunctionId,
        egress: FunctionId,
    ) -> UntranslatedReach {
        let port = self.ingress(ingress);
        let turn = port.untranslated(self.egress_number(egress));
        let slot = |id| {
            let at = self.sbdf(id);
            (at.domain(), at.bus(), at.device())
        };
        match self.port_type(ingress) {
            PortType::RootPort => {}
            PortType::Unknown => return UntranslatedReach::Perhaps,
            // The functions belong to a device of the root complex that declares that it routes between its functions.
            _ if slot(ingress) == slot(egress)
                && port.implements(AcsBits::RR)
                && turn == RequestRoute::Straight =>
            {
                return UntranslatedReach::Yes;
            }
            _ => return UntranslatedReach::No,
        }
        match (port, turn) {
            (Ingress::Acs { .. }, _) if !port.implements(AcsBits::RR) => UntranslatedReach::No,
            (_, RequestRoute::Straight | RequestRoute::Unknown(_)) => UntranslatedReach::Perhaps,
            (_, RequestRoute::Redirected | RequestRoute::Blocked) => UntranslatedReach::No,
        }
    }

    /// Every path across a switch that bypasses the IOMMU between functions of different groups.
    #[must_use]
    pub fn isolation_holes(&self, groups: &Groups) -> Vec<IsolationHole> {
        let tree = self.topology().tree();
        let mut leaks = Vec::new();
        for switch in tree.top_down() {
            if self.port_type(switch) != PortType::SwitchUpstream {
                continue;
            }
            let ports: Vec<(FunctionId, Vec<Sbdf>)> = tree
                .children(switch)
                .iter()
                .map(|port| (*port, self.devices_below(*port)))
                .filter(|(_, devices)| !devices.is_empty())
                .collect();
            for (port, from) in ports.iter().filter(|(port, _)| self.routes_straight(*port)) {
                for (into, devices) in ports.iter().filter(|(into, _)| into != port) {
                    let exposed = self.exposed_across(*port, from, *into, devices, groups);
                    if !exposed.is_empty() {
                        leaks.push(IsolationHole {
                            switch: self.sbdf(switch),
                            port: self.sbdf(*port),
                            into: self.sbdf(*into),
                            from: from.clone(),
                            exposed,
                        });
                    }
                }
            }
        }
        leaks.sort_by_key(|leak| (leak.port, leak.into));
        leaks
    }

    /// The devices below `into` that `port` lets requests through to and that do not share a group with all of `from`.
    fn exposed_across(
        &self,
        port: FunctionId,
        from: &[Sbdf],
        into: FunctionId,
        devices: &[Sbdf],
        groups: &Groups,
    ) -> Vec<Sbdf> {
        if self.ingress(port).untranslated(self.egress_number(into)) != RequestRoute::Straight {
            return Vec::new();
        }
        let one_group = from
            .first()
            .filter(|first| from.iter().all(|other| groups.together(**first, *other)));
        let apart = |to: &&Sbdf| one_group.is_none_or(|first| !groups.together(*first, **to));
        devices.iter().filter(apart).copied().collect()
    }

    fn routes_straight(&self, port: FunctionId) -> bool {
        self.is_present(port)
            && self.port_type(port) == PortType::SwitchDownstream
            && matches!(self.ingress(port), Ingress::Plain | Ingress::Acs { .. })
    }

    /// The functions below a port that are present and are not ports.
    fn devices_below(&self, port: FunctionId) -> Vec<Sbdf> {
        self.topology()
            .descendants(self.sbdf(port))
            .filter(|function| !function.is_bridge())
            .map(crate::Function::sbdf)
            .filter(|sbdf| self.find(*sbdf).is_some())
            .collect()
    }
}
