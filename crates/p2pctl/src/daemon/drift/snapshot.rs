//! Host state that assigned devices depend on: ACS and groups on their paths, and isolation holes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hotplug::regroup::DeviceFacts;
use iommu_group::{
    AcsBits, AcsSetting, Exposure, Function, Groups, RoutingModel, Sbdf, Topology,
    UntranslatedReach,
};

/// Host state at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Snapshot {
    /// The ACS setting of every port that has one.
    pub(super) acs: BTreeMap<Sbdf, AcsSetting>,
    /// The facts of every endpoint.
    pub(super) functions: BTreeMap<Sbdf, DeviceFacts>,
    /// The topology for computing a device's exposures on demand.
    topology: Option<Arc<Topology>>,
}

impl Snapshot {
    pub(super) fn of(topology: Arc<Topology>) -> Self {
        let all = topology.functions().iter();
        let endpoints = all.clone().filter(|function| !function.is_bridge());
        let facts = |function: &Function| {
            let at = function.sbdf();
            let above = topology.ancestors(at);
            let facts = DeviceFacts {
                path: above.map(|port| (port.sbdf(), setting(port))).collect(),
                group: function.group(),
                is_assigned: function.driver_kind().is_vfio(),
                exposures: None,
            };
            (at, facts)
        };
        Self {
            acs: all
                .filter_map(|port| Some((port.sbdf(), setting(port)?)))
                .collect(),
            functions: endpoints.map(facts).collect(),
            topology: Some(Arc::clone(&topology)),
        }
    }

    /// The facts of a function, with its exposures.
    pub(super) fn facts(&self, function: Sbdf) -> Option<DeviceFacts> {
        let mut facts = self.functions.get(&function)?.clone();
        if facts.is_assigned && facts.exposures.is_none() {
            let topology = self.topology.as_deref();
            facts.exposures = topology.map(|topology| exposures(topology, function));
        }
        Some(facts)
    }

    /// The differences in `now`, as text, by function. New functions are not differences: [`lost`](Self::lost) reports
    /// their effects.
    pub(super) fn changes(&self, now: &Self) -> Vec<(Sbdf, String)> {
        let mut changes = Vec::new();
        for (port, was) in &self.acs {
            match now.acs.get(port) {
                Some(is) if is == was => {}
                Some(is) => changes.push((*port, acs_change(*port, *was, *is))),
                None => changes.push((*port, format!("{port} is gone"))),
            }
        }
        for (function, was) in &self.functions {
            match now.functions.get(function) {
                Some(is) if is.group == was.group => {}
                Some(_) => changes.push((*function, format!("{function} is in another group"))),
                None => changes.push((*function, format!("{function} is gone"))),
            }
        }
        changes
    }

    /// The reference state after transactions of the daemon that may have touched these functions. It is `now`, without
    /// the changes that others made to untouched functions.
    pub(super) fn after_changes(&self, now: &Self, touched: &BTreeSet<Sbdf>) -> Self {
        let mut normal = now.clone();
        for (port, was) in &self.acs {
            let is = now.acs.get(port).filter(|_| !touched.contains(port));
            if is.is_some_and(|is| is.is_less_strict_than(was)) {
                normal.set_acs(*port, *was);
            }
        }
        let mut new = self.lost(now);
        new.retain(|exposure| exposure.through.iter().all(|port| !touched.contains(port)));
        for exposure in &new {
            for end in exposure.to.iter().chain([&exposure.function]) {
                let Some(mut facts) = normal.facts(*end) else {
                    continue;
                };
                if let Some(exposures) = &mut facts.exposures {
                    exposures.remove(exposure);
                    normal.functions.insert(*end, facts);
                }
            }
        }
        normal
    }

    fn set_acs(&mut self, port: Sbdf, setting: AcsSetting) {
        self.acs.insert(port, setting);
        let paths = self
            .functions
            .values_mut()
            .flat_map(|facts| &mut facts.path);
        for (_, held) in paths.filter(|(at, _)| *at == port) {
            *held = Some(setting);
        }
    }

    /// New exposures of assigned devices.
    pub(super) fn lost(&self, now: &Self) -> BTreeSet<Exposure> {
        let assigned = now.functions.iter().filter(|(_, facts)| facts.is_assigned);
        let assigned = assigned.map(|(function, _)| *function);
        let differs = |(port, was): (&Sbdf, &AcsSetting)| now.acs.get(port) != Some(was);
        if self.acs.iter().any(differs) || self.has_exceptions() {
            let lost = assigned.filter_map(|function| {
                let (was, is) = (self.facts(function)?, now.facts(function)?);
                Some(was.new_exposures(&is))
            });
            return lost.flatten().collect();
        }
        // Usually only new functions matter, so few pairs have to be checked.
        let Some(topology) = now.topology.as_deref() else {
            return BTreeSet::new();
        };
        let (routing, groups) = (RoutingModel::found(topology), Groups::found(topology));
        let arrived = now.functions.iter();
        let arrived = arrived.filter(|(at, _)| !self.functions.contains_key(at));
        let mut lost = BTreeSet::new();
        for (other, facts) in arrived {
            let known = assigned
                .clone()
                .filter(|at| self.functions.contains_key(at));
            for device in known.filter(|device| !groups.together(*device, *other)) {
                let into = facts.is_assigned.then_some((*other, device));
                let pairs = [(device, *other)].into_iter().chain(into);
                let certain =
                    pairs.filter(|(from, to)| routing.reach(*from, *to) == UntranslatedReach::Yes);
                lost.extend(certain.map(|(from, to)| one_sender(topology, from, to)));
            }
        }
        lost
    }

    /// Whether there are exposures that the topology does not have.
    fn has_exceptions(&self) -> bool {
        self.functions
            .values()
            .any(|facts| facts.exposures.is_some())
    }
}

/// Text for a changed ACS setting.
pub(super) fn acs_change(port: Sbdf, was: AcsSetting, is: AcsSetting) -> String {
    format!("ACS of {port} is {is}, and was {was}")
}

fn setting(port: &Function) -> Option<AcsSetting> {
    let acs = port.acs().registers()?;
    port.port_type().is_downstream().then(|| acs.setting())
}

fn exposures(topology: &Topology, device: Sbdf) -> BTreeSet<Exposure> {
    let (routing, groups) = (RoutingModel::found(topology), Groups::found(topology));
    let found = routing.exposures(&groups, &BTreeSet::from([device]));
    let certain = found
        .iter()
        .filter(|exposure| exposure.reach == UntranslatedReach::Yes);
    certain
        .flat_map(|exposure| {
            let senders = exposure.to.iter();
            senders.map(|from| one_sender(topology, *from, exposure.function))
        })
        .collect()
}

fn one_sender(topology: &Topology, from: Sbdf, function: Sbdf) -> Exposure {
    let common: BTreeSet<Sbdf> = topology.ancestors(function).map(Function::sbdf).collect();
    let own = topology
        .ancestors(from)
        .map(Function::sbdf)
        .take_while(|port| !common.contains(port));
    // Without a port between them, the bus connects them.
    let through = own
        .last()
        .or_else(|| topology.upstream(from).map(Function::sbdf));
    Exposure {
        function,
        to: vec![from],
        through: through.into_iter().collect(),
        reach: UntranslatedReach::Yes,
    }
}

/// The change that would end an exposure, if a port on the path can redirect requests and does not.
pub(super) fn remedy(topology: &Topology, exposure: &Exposure) -> Option<String> {
    exposure.through.iter().find_map(|port| {
        let acs = topology.get(*port)?.acs().registers()?;
        let off = acs.capability.contains(AcsBits::RR) && !acs.control.contains(AcsBits::RR);
        let on = acs.control | (acs.capability & AcsBits::REQUIRED);
        off.then(|| {
            format!(
                "request redirect (RR) of port {port} is off: p2pctl apply --acs {port}={on:04x}"
            )
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SWITCH: &str = include_str!("../../../../../resources/topologies/switch-four-nvme.json");

    fn at(text: &str) -> Sbdf {
        text.parse().unwrap()
    }

    /// The switch with this ACS control at the port above 03:00.0, without these functions.
    fn topology(control: &str, without: &[&str]) -> Topology {
        let mut document: serde_json::Value = serde_json::from_str(SWITCH).unwrap();
        let functions = document["functions"].as_object_mut().unwrap();
        functions["0000:02:00.0"]["config"]["150"] = format!("0d0001005f00{control}").into();
        functions.retain(|function, _| !without.contains(&function.as_str()));
        Topology::from_fixture(&document.to_string()).unwrap()
    }

    fn switch(control: &str, without: &[&str]) -> Snapshot {
        Snapshot::of(Arc::new(topology(control, without)))
    }

    #[test]
    fn a_host_is_like_itself() {
        let host = switch("1d", &[]);
        assert!(!host.acs.is_empty() && !host.functions.is_empty());
        assert_eq!(host.changes(&host), []);
        assert_eq!(host.lost(&host), BTreeSet::new());
    }

    #[test]
    fn another_control_a_lost_device_and_another_group_are_told() {
        let host = switch("1d", &[]);
        let mut now = host.clone();
        now.acs
            .insert(at("02:01.0"), AcsSetting::new(AcsBits::NONE, None));
        now.functions.remove(&at("03:00.0"));
        now.functions.get_mut(&at("04:00.0")).unwrap().group = None;
        let expected = [
            (
                at("02:01.0"),
                "ACS of 0000:02:01.0 is 0000, and was 001d".to_owned(),
            ),
            (at("03:00.0"), "0000:03:00.0 is gone".to_owned()),
            (at("04:00.0"), "0000:04:00.0 is in another group".to_owned()),
        ];
        assert_eq!(host.changes(&now), expected);
    }

    #[test]
    fn a_function_that_arrives_is_exposed_to_a_device_below_a_port_that_does_not_redirect() {
        let arrives = ["0000:04:00.0"];
        let (before, now) = (switch("11", &arrives), switch("11", &[]));
        assert_eq!(before.changes(&now), [], "nothing that was there differs");
        let lost: Vec<_> = before.lost(&now).into_iter().collect();
        let texts: Vec<_> = lost.iter().map(ToString::to_string).collect();
        let told = "0000:03:00.0 reaches 0000:04:00.0 without the IOMMU, through 0000:02:00.0";
        assert_eq!(texts, [told]);
        assert_eq!(
            remedy(&topology("11", &[]), &lost[0]).unwrap(),
            "request redirect (RR) of port 0000:02:00.0 is off: p2pctl apply --acs 0000:02:00.0=001d"
        );
        assert_eq!(remedy(&topology("1d", &[]), &lost[0]), None);
        let closed = switch("1d", &arrives).lost(&switch("1d", &[]));
        assert_eq!(closed, BTreeSet::new());
    }

    #[test]
    fn what_others_do_during_a_change_is_no_part_of_it() {
        let arrives = ["0000:04:00.0"];
        let (before, now) = (switch("1d", &arrives), switch("11", &[]));
        let elsewhere = BTreeSet::from([at("02:01.0")]);
        let normal = before.after_changes(&now, &elsewhere);
        let changes = normal.changes(&now);
        let texts: Vec<_> = changes.iter().map(|(_, what)| what.as_str()).collect();
        assert_eq!(texts, ["ACS of 0000:02:00.0 is 0011, and was 001d"]);
        assert_eq!(normal.lost(&now).len(), 3, "those of 03:00.0");
        assert_eq!(
            normal.functions[&at("03:00.0")].path,
            before.functions[&at("03:00.0")].path
        );
        // Changes of touched functions are intentional, and stricter settings are kept.
        let touched = BTreeSet::from([at("02:00.0")]);
        assert_eq!(before.after_changes(&now, &touched), now);
        let stricter = switch("1f", &arrives);
        assert_eq!(before.after_changes(&stricter, &elsewhere), stricter);
    }

    #[test]
    fn arrivals_beside_many_assigned_functions_are_looked_at_in_little_time() {
        let text = test_machine::hosts::sriov_1000().fixture();
        let mut document: serde_json::Value = serde_json::from_str(&text).unwrap();
        let functions = document["functions"].as_object_mut().unwrap();
        for function in functions.values_mut() {
            function["driver"] = "vfio-pci".into();
        }
        let now = Snapshot::of(Arc::new(
            Topology::from_fixture(&document.to_string()).unwrap(),
        ));
        let mut before = now.clone();
        before.functions.pop_last();
        let started = std::time::Instant::now();
        before.lost(&now);
        // Checking all pairs takes minutes here.
        assert!(started.elapsed() < std::time::Duration::from_secs(5));
    }

    #[test]
    fn a_port_that_no_longer_redirects_exposes_what_is_below_its_neighbours() {
        let lost = switch("1d", &[]).lost(&switch("11", &[]));
        let reached: Vec<Sbdf> = lost.iter().map(|exposure| exposure.function).collect();
        assert!(lost.iter().all(|exposure| exposure.to == [at("03:00.0")]));
        assert_eq!(reached, [at("04:00.0"), at("05:00.0"), at("06:00.0")]);
    }
}
