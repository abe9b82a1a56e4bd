//! Joins functions into one group.

use std::collections::BTreeSet;

use super::diff::Transient;
use super::planner::Planner;
use super::{Infeasible, Purpose, Refusal, Step};
use crate::config::AcsBits;
use crate::{Function, GroupModel, Sbdf};

/// A change of a port during a rescan, so that Linux does not consider the port as isolating.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Opening {
    port: Sbdf,
    from: AcsBits,
    to: AcsBits,
}

/// One removal and rescan.
struct Round {
    /// The bridge whose group the functions join.
    anchor: Sbdf,
    remove: BTreeSet<Sbdf>,
    /// `None` if no change is necessary: the path above the anchor is not isolating.
    opening: Option<Opening>,
}

/// The bits that may be cleared, the least harmful first.
///
/// With request redirect set, no request goes from peer to peer, so no completion does. Clearing completion redirect
/// changes only the path of completions of redirected requests, temporarily. Clearing upstream forwarding loses those
/// requests. Clearing request redirect lets requests go directly, so it is used only for ports without active devices
/// below.
const OPENINGS: [AcsBits; 3] = [AcsBits::CR, AcsBits::UF, AcsBits::RR];

impl Planner<'_> {
    /// Joins every set.
    pub(super) fn join(&mut self) -> Result<(), Refusal> {
        let mut reasons = Vec::new();
        for set in self.goals.join.clone() {
            match self.round_for(&set) {
                Ok(None) => {}
                Ok(Some(round)) => {
                    self.carry_out(&round);
                    self.split_bystanders(&round, &set);
                }
                Err(reason) => reasons.push(reason),
            }
        }
        if reasons.is_empty() {
            Ok(())
        } else {
            Err(Refusal { reasons })
        }
    }

    fn are_together(model: &GroupModel<'_>, set: &BTreeSet<Sbdf>) -> bool {
        let first = set.first();
        first.is_some_and(|first| set.iter().all(|other| model.together(*first, *other)))
    }

    /// The removal and rescan that joins a set and affects the fewest functions; `None` if the set is joined already.
    fn round_for(&self, set: &BTreeSet<Sbdf>) -> Result<Option<Round>, Infeasible> {
        if Self::are_together(&self.model, set) {
            return Ok(None);
        }
        let anchors = self.common_bridges(set)?;
        let mut obstacle = None;
        for anchor in &anchors {
            match self.round_at(*anchor, set) {
                Ok(round) => return Ok(Some(round)),
                Err(reason) => obstacle = obstacle.or(Some(reason)),
            }
        }
        Err(obstacle.unwrap_or(Infeasible::CannotOpen {
            functions: set.iter().copied().collect(),
            anchor: anchors
                .first()
                .copied()
                .unwrap_or(Sbdf::from_devfn(0, 0, 0)),
            ports: Vec::new(),
        }))
    }

    /// The bridges above all functions of a set, the lowest first.
    fn common_bridges(&self, set: &BTreeSet<Sbdf>) -> Result<Vec<Sbdf>, Infeasible> {
        let Some(first) = set.first() else {
            return Ok(Vec::new());
        };
        let above = self.topology.ancestors(*first).map(Function::sbdf);
        let mut common: Vec<Sbdf> = above.collect();
        for other in set {
            common.retain(|bridge| self.child_towards(*bridge, *other).is_some());
            if common.is_empty() {
                return Err(Infeasible::DifferentRootPorts {
                    a: *first,
                    b: *other,
                });
            }
        }
        Ok(common)
    }

    fn round_at(&self, anchor: Sbdf, set: &BTreeSet<Sbdf>) -> Result<Round, Infeasible> {
        // Functions that are already in the group of the anchor are not moved.
        let moving: Vec<Sbdf> = set
            .iter()
            .copied()
            .filter(|function| !self.model.together(anchor, *function))
            .collect();
        for function in &moving {
            let found = self.topology.get(*function);
            if let Some(physical) = found.and_then(Function::physical_function) {
                return Err(Infeasible::VirtualFunction {
                    function: *function,
                    physical,
                });
            }
        }
        let remove: BTreeSet<Sbdf> = moving
            .iter()
            .filter_map(|function| self.child_towards(anchor, *function))
            .collect();
        let mut candidates = vec![None];
        candidates.extend(self.openings(anchor, &remove).into_iter().map(Some));
        for opening in candidates {
            let round = Round {
                anchor,
                remove: remove.clone(),
                opening,
            };
            let mut trial = self.model.clone();
            for step in self.steps_of(&round) {
                step.apply(&mut trial);
            }
            if Self::are_together(&trial, set) {
                return Ok(round);
            }
        }
        Err(Infeasible::CannotOpen {
            functions: set.iter().copied().collect(),
            anchor,
            ports: self
                .topology
                .with_ancestors(anchor)
                .filter(|port| {
                    self.topology
                        .get(*port)
                        .is_some_and(|f| f.port_type().is_downstream())
                })
                .collect(),
        })
    }

    /// The possible openings above the anchor, the least harmful and the nearest first.
    fn openings(&self, anchor: Sbdf, removed: &BTreeSet<Sbdf>) -> Vec<Opening> {
        let ports: Vec<Sbdf> = self.topology.with_ancestors(anchor).collect();
        let mut openings = Vec::new();
        for bit in OPENINGS {
            for port in &ports {
                let Some(acs) = self.port_acs(*port) else {
                    continue;
                };
                let from = self.control(*port);
                let usable = acs.capability.contains(bit) && from.contains(bit);
                if usable && (bit != AcsBits::RR || self.nothing_else_below(*port, removed)) {
                    openings.push(Opening {
                        port: *port,
                        from,
                        to: from & !bit,
                    });
                }
            }
        }
        openings
    }

    fn nothing_else_below(&self, port: Sbdf, removed: &BTreeSet<Sbdf>) -> bool {
        let goes = |device: Sbdf| {
            let mut path = self.topology.with_ancestors(device);
            path.any(|at| removed.contains(&at))
        };
        self.devices_below(port).all(goes)
    }

    fn steps_of(&self, round: &Round) -> Vec<Step> {
        // The port is open for as short a time as possible: the functions are removed first.
        let mut steps = vec![Step::Remove {
            functions: round.remove.clone(),
        }];
        let set = |opening: &Opening, from, to, purpose| Step::SetAcs {
            port: opening.port,
            from,
            to,
            purpose,
        };
        steps.extend(
            round
                .opening
                .iter()
                .map(|opening| set(opening, opening.from, opening.to, Purpose::OpenForRescan)),
        );
        steps.push(Step::Rescan {
            below: BTreeSet::from([round.anchor]),
        });
        steps.extend(
            round
                .opening
                .iter()
                .map(|opening| set(opening, opening.to, opening.from, Purpose::Restore)),
        );
        steps
    }

    fn carry_out(&mut self, round: &Round) {
        for step in self.steps_of(round) {
            if let Step::SetAcs {
                port,
                from,
                to,
                purpose: Purpose::OpenForRescan,
            } = step
            {
                self.opened.insert(port, to);
                self.transients.push(Transient {
                    port,
                    from,
                    to,
                    alive: self.devices_below(port).collect(),
                });
            }
            self.step(step);
        }
        self.check_groups();
    }

    /// Takes functions out of the group again that were removed only because they are below a removed function. They
    /// are unplugged anyway, and the ports above them are restored now.
    fn split_bystanders(&mut self, round: &Round, set: &BTreeSet<Sbdf>) {
        let mut pending: Vec<Sbdf> = round.remove.iter().copied().collect();
        let mut tops = BTreeSet::new();
        while let Some(bridge) = pending.pop() {
            for child in self
                .topology
                .children(bridge)
                .filter(|child| !child.is_virtual())
            {
                let sbdf = child.sbdf();
                let mut subtree = self.topology.with_descendants(sbdf);
                let leads_to_member = subtree.any(|at| set.contains(&at));
                if leads_to_member {
                    pending.push(sbdf);
                } else {
                    tops.insert(sbdf);
                }
            }
        }
        let with_member = |model: &GroupModel<'_>, function: Sbdf| {
            set.iter().any(|member| model.together(*member, function))
        };
        tops.retain(|top| with_member(&self.model, *top));
        // Only functions that leave the group are worth a second removal.
        let trial = self.model.clone().readded(&tops);
        tops.retain(|top| !with_member(&trial, *top));
        if tops.is_empty() {
            return;
        }
        let below = tops
            .iter()
            .filter_map(|top| self.topology.upstream(*top))
            .map(Function::sbdf);
        let below = below.collect();
        self.step(Step::Remove { functions: tops });
        self.step(Step::Rescan { below });
        self.check_groups();
    }
}
