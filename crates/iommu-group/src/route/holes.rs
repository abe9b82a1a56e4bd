//! Addresses that a guest's memory must keep clear of.

use std::ops::RangeInclusive;

use serde::Serialize;

use super::fabric::{Fabric, Turn};
use crate::config::AcsBits;
use crate::topology::FunctionId;
use crate::{PortType, Sbdf};

/// Bus addresses at which requests of a device do not get to the IOMMU, and so do not get to guest memory either.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MemoryHole {
    /// First and last address.
    pub range: RangeInclusive<u64>,
    /// The port whose window or BAR it is.
    pub port: Sbdf,
}

impl Fabric<'_> {
    /// The bus addresses that the memory of a guest, and anything else mapped for it, must keep clear of if it is
    /// given this device: a port above it routes by address, before the IOMMU, and would take such requests for
    /// others (or, without upstream forwarding, drop them). Empty if every port above redirects and forwards.
    ///
    /// These are the windows and BARs of all ports of the switches above the device, and of the root port above those;
    /// of everything on the root bus if the root port itself does not redirect.
    #[must_use]
    pub fn memory_holes(&self, device: Sbdf) -> Vec<MemoryHole> {
        let Some(id) = self.find(device) else {
            return Vec::new();
        };
        let ports: Vec<FunctionId> = self.topology().tree().ancestors(id).collect();
        if ports.iter().all(|port| self.keeps_to_iommu(*port)) {
            return Vec::new();
        }
        let mut holes = Vec::new();
        for port in &ports {
            if self.port_type(*port) == PortType::SwitchUpstream {
                for sibling in self.topology().tree().children(*port) {
                    self.holes_of(*sibling, &mut holes);
                }
            }
            if self.port_type(*port) != PortType::SwitchDownstream {
                self.holes_of(*port, &mut holes);
            }
        }
        // A root port that does not redirect may pass requests on to whatever else is on its root bus.
        if let Some(top) = ports.last().filter(|top| !self.keeps_to_iommu(**top)) {
            let root = self.topology().tree().root_of(*top);
            for other in self.topology().tree().on_root_number(root) {
                self.holes_of(*other, &mut holes);
            }
        }
        holes.sort_by_key(|hole| (*hole.range.start(), *hole.range.end(), hole.port));
        holes.dedup();
        holes
    }

    /// Whether a port sends everything that comes from below to the IOMMU, whatever its address. Upstream ports of
    /// switches do not decide.
    fn keeps_to_iommu(&self, port: FunctionId) -> bool {
        let port_type = self.port_type(port);
        if port_type == PortType::SwitchUpstream {
            return true;
        }
        if !port_type.is_downstream() {
            return false;
        }
        let ingress = self.ingress(port);
        // Without a number only request redirect for all counts: with egress control some peer may be open.
        let redirects = match self.control(port) {
            Some(control) if control.contains(AcsBits::EC) => false,
            _ => ingress.untranslated(None) == Turn::Redirected,
        };
        let root_port_without_peers = port_type == PortType::RootPort
            && self.control(port).is_some()
            && !ingress.implements(AcsBits::RR);
        (redirects || root_port_without_peers)
            && ingress.forwards_upstream(port_type) != Some(false)
    }

    fn holes_of(&self, id: FunctionId, holes: &mut Vec<MemoryHole>) {
        let Some(function) = self.function(id) else {
            return;
        };
        let port = function.sbdf();
        let windows = function
            .windows()
            .into_iter()
            .flat_map(|windows| windows.memory_windows());
        holes.extend(windows.map(|range| MemoryHole {
            range: range.clone(),
            port,
        }));
        let bars = self.topology().bars(function);
        holes.extend(bars.iter().filter(|bar| bar.is_memory()).filter_map(|bar| {
            let start = bar.bus_address?;
            let end = start.checked_add(bar.size_bytes.checked_sub(1)?)?;
            Some(MemoryHole {
                range: start..=end,
                port,
            })
        }));
    }
}
