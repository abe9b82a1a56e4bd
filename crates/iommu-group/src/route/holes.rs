//! Address ranges at which guest memory must not be placed.

use std::fmt;
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use super::model::{Ingress, RequestRoute, RoutingModel};
use crate::address::Address;
use crate::config::AcsBits;
use crate::topology::FunctionId;
use crate::{PortType, Sbdf};

/// Bus addresses at which requests of a device do not reach the IOMMU, and therefore do not reach guest memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryHole {
    /// First and last address.
    pub range: RangeInclusive<u64>,
    /// The function that has the window or BAR.
    pub port: Sbdf,
    /// What happens to such requests.
    pub cause: HoleCause,
    /// Whether the hole is known to exist. What a root complex does between root ports without ACS is not known.
    pub certain: bool,
}

/// What happens to a request that does not reach the IOMMU, the worst case first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HoleCause {
    /// Another function receives it: the ingress port does not redirect.
    Neighbour,
    /// The ingress port drops it: the address is below that port, and the port does not forward such requests upstream.
    NotForwarded,
    /// It ends at a switch, whatever ACS is set to: the address is in the window of the upstream port and no downstream
    /// port claims it, or it is in a BAR of the upstream port.
    Switch,
}

/// What happens to requests, and whether that is known.
type End = (HoleCause, bool);

const TAKEN: End = (HoleCause::Neighbour, true);
const MAYBE_TAKEN: End = (HoleCause::Neighbour, false);

impl MemoryHole {
    /// The hole that does the most harm to memory at these addresses.
    #[must_use]
    pub fn worst<'h>(
        holes: impl IntoIterator<Item = &'h Self>,
        memory: &RangeInclusive<u64>,
    ) -> Option<&'h Self> {
        let overlaps =
            |hole: &&Self| hole.range.start() <= memory.end() && memory.start() <= hole.range.end();
        let holes = holes.into_iter().filter(overlaps);
        holes.min_by_key(|hole| hole.cause)
    }
}

impl fmt::Display for MemoryHole {
    /// Writes the range and what happens to requests: `0xe0000000-0xe00fffff, which 0000:02:00.0 does not forward
    /// upstream`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            range, port, cause, ..
        } = self;
        write!(f, "{:#x}-{:#x}, ", range.start(), range.end())?;
        match cause {
            HoleCause::Neighbour => write!(f, "which {port} takes before the IOMMU sees it"),
            HoleCause::NotForwarded => write!(f, "which {port} does not forward upstream"),
            HoleCause::Switch => write!(f, "which the switch at {port} keeps from the IOMMU"),
        }
    }
}

impl RoutingModel<'_> {
    /// The bus addresses at which requests of this device do not reach the IOMMU. Memory of a guest that has the
    /// device, and anything else mapped for the guest, must not be placed there.
    ///
    /// The holes depend on what is above the device:
    /// * a switch: the whole window of its upstream port, whatever ACS is set to, because a request that no downstream
    ///   port claims ends as an Unsupported Request (PCIe r6.0 §6.12.1.1), and the BARs of the upstream port. What the
    ///   other ports claim is listed separately if the device's port does not redirect to the IOMMU;
    /// * a root port: its window, unless it forwards upstream; and everything else on the root bus, unless it
    ///   redirects;
    /// * a bridge to conventional PCI: its window;
    /// * other functions of the same device: their BARs, if the device can route between its functions and does.
    #[must_use]
    pub fn memory_holes(&self, device: Sbdf) -> Vec<MemoryHole> {
        let Some(id) = self.find(device) else {
            return Vec::new();
        };
        let mut holes = Vec::new();
        let chain = self.chain(id);
        let ports = chain.get(1..).unwrap_or_default();
        // It is not known which addresses a port of unknown type claims, or what it does with them.
        let unreadable = ports
            .iter()
            .any(|port| self.port_type(*port) == PortType::Unknown);
        for at in &chain {
            self.holes_of_device(*at, &mut holes);
        }
        for (below, port) in chain.iter().zip(ports) {
            let port_type = self.port_type(*port);
            if unreadable {
                self.holes_of(*port, MAYBE_TAKEN, &mut holes);
            }
            match port_type {
                PortType::SwitchUpstream => {
                    self.holes_of_switch(*port, *below, unreadable, &mut holes);
                }
                // `holes_of_switch` covers the downstream ports.
                PortType::SwitchDownstream => {}
                PortType::RootPort => {
                    if let Some(end) = self.end_in_root_port(*port) {
                        self.windows_of(*port, end, &mut holes);
                    }
                }
                _ => self.holes_of(*port, TAKEN, &mut holes),
            }
        }
        // A root port that does not redirect may pass requests on to anything else on its root bus.
        if let Some(top) = ports.last().filter(|top| !self.keeps_to_iommu(**top)) {
            let root = self.topology().tree().root_of(*top);
            let others = self.topology().tree().on_root_number(root).iter();
            for other in others.filter(|other| *other != top) {
                self.holes_of(*other, MAYBE_TAKEN, &mut holes);
            }
        }
        holes.sort_by_key(|hole| {
            (
                *hole.range.start(),
                *hole.range.end(),
                hole.port,
                hole.cause,
            )
        });
        holes.dedup();
        holes
    }

    /// Adds the holes that a switch makes for functions below its port `below`.
    fn holes_of_switch(
        &self,
        upstream: FunctionId,
        below: FunctionId,
        unreadable: bool,
        holes: &mut Vec<MemoryHole>,
    ) {
        self.holes_of(upstream, (HoleCause::Switch, true), holes);
        if self.keeps_to_iommu(below) && !unreadable {
            return;
        }
        for port in self.topology().tree().children(upstream) {
            if *port != below || unreadable {
                self.holes_of(*port, (HoleCause::Neighbour, !unreadable), holes);
            } else if self.ingress(below).forwards_upstream(self.port_type(below)) != Some(true) {
                self.windows_of(below, (HoleCause::NotForwarded, true), holes);
            }
        }
    }

    /// Adds the BARs of other functions of the same device that requests of the function reach inside the device.
    fn holes_of_device(&self, id: FunctionId, holes: &mut Vec<MemoryHole>) {
        let ingress = self.ingress(id);
        if self.port_type(id).is_downstream() || !ingress.implements(AcsBits::RR) {
            return;
        }
        let tree = self.topology().tree();
        let parent = tree.parent(id);
        let one_link = parent.is_some_and(|parent| self.port_type(parent).is_downstream());
        let neighbours = match parent {
            Some(parent) => tree.children(parent),
            None => tree.on_root_number(tree.root_of(id)),
        };
        for other in neighbours.iter().filter(|other| **other != id) {
            let same = one_link || self.sbdf(*other).device() == self.sbdf(id).device();
            let redirected =
                ingress.untranslated(self.egress_number(*other)) == RequestRoute::Redirected;
            if same && !redirected && !self.port_type(*other).is_downstream() {
                self.holes_of(*other, TAKEN, holes);
            }
        }
    }

    /// Whether a port sends every request from below to the IOMMU, whatever its address. Upstream ports of switches do
    /// not make this decision.
    fn keeps_to_iommu(&self, port: FunctionId) -> bool {
        let port_type = self.port_type(port);
        if port_type == PortType::SwitchUpstream {
            return true;
        }
        if !port_type.is_downstream() {
            return false;
        }
        let ingress = self.ingress(port);
        // With egress control some port may be open, so only request redirect without egress control counts.
        let redirects = match self.control(port) {
            Some(control) if control.contains(AcsBits::EC) => false,
            _ => ingress.untranslated(None) == RequestRoute::Redirected,
        };
        let root_port_without_peers = port_type == PortType::RootPort
            && self.control(port).is_some()
            && !ingress.implements(AcsBits::RR);
        (redirects || root_port_without_peers)
            && ingress.forwards_upstream(port_type) != Some(false)
    }

    /// What happens to requests from below a root port that are addressed below it; `None` if the port forwards them
    /// upstream.
    fn end_in_root_port(&self, port: FunctionId) -> Option<End> {
        let ingress = self.ingress(port);
        match (ingress, ingress.forwards_upstream(PortType::RootPort)) {
            (Ingress::Apart, _) | (_, Some(true)) => None,
            (_, Some(false)) => Some((HoleCause::NotForwarded, true)),
            (_, None) => Some((HoleCause::NotForwarded, false)),
        }
    }

    fn holes_of(&self, id: FunctionId, end: End, holes: &mut Vec<MemoryHole>) {
        self.windows_of(id, end, holes);
        let Some(function) = self.function(id) else {
            return;
        };
        let bars = self.topology().bars(function);
        let memory = bars.iter().filter(|bar| bar.is_memory());
        let ranges = memory.filter_map(|bar| {
            let start = bar.bus_address?.value();
            let last = start.checked_add(bar.size_bytes.checked_sub(1)?)?;
            Some(start..=last)
        });
        holes.extend(ranges.map(|range| hole(range, function.sbdf(), end)));
    }

    fn windows_of(&self, id: FunctionId, end: End, holes: &mut Vec<MemoryHole>) {
        let Some(function) = self.function(id) else {
            return;
        };
        let windows = function.windows().into_iter();
        let windows = windows.flat_map(|windows| windows.memory_windows());
        holes.extend(windows.map(|range| hole(range.clone(), function.sbdf(), end)));
    }
}

fn hole(range: RangeInclusive<u64>, port: Sbdf, (cause, certain): End) -> MemoryHole {
    MemoryHole {
        range,
        port,
        cause,
        certain,
    }
}
