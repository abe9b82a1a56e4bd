//! Isolates functions: closes the routes to them and takes them out of their groups.

use std::collections::BTreeSet;

use super::planner::Planner;
use super::{Infeasible, Purpose, Refusal, RoutePreference, Step};
use crate::config::AcsBits;
use crate::{Function, PortType, Sbdf};

impl Planner<'_> {
    /// Closes routes across switches: from and to functions to be isolated, and between joined functions whose requests
    /// are to go through the IOMMU. This comes first: no group splits while its members still reach each other.
    pub(super) fn close_routes(&mut self) {
        for function in self.goals.isolate.clone() {
            self.raise_path(function);
            for port in self.open_ports_towards(function) {
                if self.goals.acs.contains_key(&port) {
                    continue;
                }
                let own = self.topology.with_ancestors(function).any(|at| at == port);
                if own || !self.options.expose.contains(&function) {
                    self.close(port);
                }
            }
        }
        if self.options.route != RoutePreference::Iommu {
            return;
        }
        for set in self.goals.join.clone() {
            for port in self.junctions(&set) {
                if self.straight_to(port, &set) && !self.goals.acs.contains_key(&port) {
                    self.close(port);
                }
            }
        }
    }

    /// Sets the ACS controls that Linux requires at every port above a function. Otherwise Linux does not consider the
    /// path as isolating.
    fn raise_path(&mut self, function: Sbdf) {
        let ports: Vec<Sbdf> = self
            .topology
            .ancestors(function)
            .map(Function::sbdf)
            .collect();
        for port in ports {
            if self.goals.acs.contains_key(&port) {
                continue;
            }
            if let Some(acs) = self.port_acs(port) {
                let raised = self.control(port) | (acs.capability & AcsBits::REQUIRED);
                self.set_acs_word(port, raised, Purpose::CloseRoute);
            }
        }
    }

    /// Sets a port to the kernel's default: requests are redirected and none go directly.
    fn close(&mut self, port: Sbdf) {
        let Some(acs) = self.port_acs(port) else {
            return;
        };
        let closed = (self.control(port) | (acs.capability & AcsBits::REQUIRED))
            & !(AcsBits::EC | AcsBits::DT);
        self.set_acs_word(port, closed, Purpose::CloseRoute);
    }

    /// The ports with ACS that let requests to or from a function go directly: the ports of every switch above it, and
    /// its root port.
    fn open_ports_towards(&self, function: Sbdf) -> BTreeSet<Sbdf> {
        let routing = self.routing();
        let mut open = BTreeSet::new();
        let path: Vec<Sbdf> = self.topology.with_ancestors(function).collect();
        for switch in &path {
            if self
                .topology
                .get(*switch)
                .is_none_or(|f| f.port_type() != PortType::SwitchUpstream)
            {
                continue;
            }
            let Some(own) = self.child_towards(*switch, function) else {
                continue;
            };
            for port in self
                .topology
                .children(*switch)
                .map(Function::sbdf)
                .filter(|port| *port != own)
            {
                if routing.goes_straight(port, own) {
                    open.insert(port);
                }
                if routing.goes_straight(own, port) {
                    open.insert(own);
                }
            }
        }
        if let Some(root) = path.last() {
            let redirects = AcsBits::RR;
            let off = self.port_acs(*root).is_some_and(|acs| {
                acs.capability.contains(redirects) && !self.control(*root).contains(redirects)
            });
            if off {
                open.insert(*root);
            }
        }
        open.retain(|port| self.port_acs(*port).is_some());
        open
    }

    /// Takes every function to be isolated out of its group.
    pub(super) fn isolate(&mut self) -> Result<(), Refusal> {
        let mut reasons = Vec::new();
        let mut remove = BTreeSet::new();
        for function in self.goals.isolate.clone() {
            match self.removal_for(function) {
                Ok(more) => remove.extend(more),
                Err(reason) => reasons.push(reason),
            }
        }
        if !reasons.is_empty() {
            return Err(Refusal { reasons });
        }
        // Functions below a removed function are removed with it.
        let inside = |function: &Sbdf| {
            self.topology
                .ancestors(*function)
                .any(|f| remove.contains(&f.sbdf()))
        };
        let remove: BTreeSet<Sbdf> = remove
            .iter()
            .copied()
            .filter(|function| !inside(function))
            .collect();
        if remove.is_empty() {
            return Ok(());
        }
        let below = remove
            .iter()
            .filter_map(|function| self.topology.upstream(*function))
            .map(Function::sbdf);
        let below = below.collect();
        self.step(Step::Remove { functions: remove });
        self.step(Step::Rescan { below });
        self.check_groups();
        Ok(())
    }

    /// The smallest removal that leaves a function in a group with the fewest others.
    fn removal_for(&self, function: Sbdf) -> Result<BTreeSet<Sbdf>, Infeasible> {
        let mut best = self.mates(&self.model, function);
        let mut removal = BTreeSet::new();
        let found = self.topology.get(function);
        let physical = found.and_then(Function::physical_function);
        if let Some(physical) = physical.filter(|_| !best.is_empty()) {
            return Err(Infeasible::VirtualFunction { function, physical });
        }
        for candidate in self.removals(function) {
            if best.is_empty() {
                break;
            }
            let trial = self.model.clone().readded(&candidate);
            let mates = self.mates(&trial, function);
            if mates.len() < best.len() {
                best = mates;
                removal = candidate;
            }
        }
        // The functions that stay in its group must be functions to isolate too.
        if best.iter().any(|mate| !self.goals.isolate.contains(mate)) {
            return Err(Infeasible::Inseparable {
                because: self.culprit(function, &removal),
                from: best,
                function,
            });
        }
        Ok(self.with_own_ports(removal))
    }

    /// Extends a removal to the ports above that have no other devices below. They leave the group too and return to
    /// their state at boot.
    fn with_own_ports(&self, mut removal: BTreeSet<Sbdf>) -> BTreeSet<Sbdf> {
        let leaves = |device: &Sbdf| self.goals.isolate.contains(device);
        while let Some(above) = removal.first().and_then(|f| self.topology.upstream(*f)) {
            let port = above.sbdf();
            let own = self.topology.upstream(port).is_some()
                && self.devices_below(port).all(|d| leaves(&d));
            let shared = self
                .mates(&self.model, port)
                .iter()
                .any(|mate| !leaves(mate));
            if !own || !shared {
                break;
            }
            removal = BTreeSet::from([port]);
        }
        removal
    }

    /// The possible removals that cause the group of a function to be computed again, the smallest first: the function
    /// alone, its device, then each port above it with the port's device.
    fn removals(&self, function: Sbdf) -> Vec<BTreeSet<Sbdf>> {
        self.topology
            .with_ancestors(function)
            .flat_map(|at| {
                let device: BTreeSet<Sbdf> = self.device_of(at).collect();
                let alone = BTreeSet::from([at]);
                if device.len() > 1 {
                    vec![alone, device]
                } else {
                    vec![alone]
                }
            })
            .collect()
    }

    /// The functions of one device, without virtual functions.
    fn device_of(&self, function: Sbdf) -> impl Iterator<Item = Sbdf> {
        let above = self.topology.upstream(function).map(Function::sbdf);
        self.topology
            .functions()
            .iter()
            .filter(move |other| {
                let at = other.sbdf();
                at.domain() == function.domain()
                    && at.bus() == function.bus()
                    && at.device() == function.device()
                    && !other.is_virtual()
            })
            .map(Function::sbdf)
            .filter(move |other| self.topology.upstream(*other).map(Function::sbdf) == above)
    }

    /// The port or function that keeps a function in its group even when it is added again.
    fn culprit(
        &self,
        function: Sbdf,
        removal: &BTreeSet<Sbdf>,
    ) -> Option<(Sbdf, crate::AcsDeficiency)> {
        let alone = BTreeSet::from([function]);
        let removal = if removal.is_empty() { &alone } else { removal };
        let trial = self.model.clone().readded(removal);
        match trial.reason(function)? {
            crate::Reason::NotIsolated { culprit, lack, .. } => Some((culprit, lack)),
            crate::Reason::SameDevice { of, lack, .. } => Some((of, lack)),
            _ => None,
        }
    }
}
