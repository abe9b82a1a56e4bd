//! Which devices are affected by drift, and the result of a host check for each of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hotplug::regroup::{DeviceFacts, VmDevice};
use iommu_group::{Exposure, Sbdf};

use super::response::Event;
use super::snapshot::Snapshot;

/// A change of the host.
#[derive(Debug, Clone)]
pub(super) struct Alarm {
    /// The host before the change.
    pub(super) before: Arc<Snapshot>,
    /// The changed functions, and a description of each change.
    pub(super) changed: BTreeMap<Sbdf, String>,
}

/// Result of a host check for a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// All state that the device depends on is unchanged.
    Same,
    /// Some of it changed, without new exposures.
    Changed,
    /// There are new exposures.
    Exposed(BTreeSet<Exposure>),
    /// The function is gone.
    Lost,
}

impl Verdict {
    pub(super) fn event(&self) -> Event {
        match self {
            Self::Same => Event::Same,
            Self::Changed => Event::Changed,
            Self::Exposed(_) => Event::Exposed,
            Self::Lost => Event::Lost,
        }
    }
}

impl Alarm {
    /// Merges a later change. The earlier snapshot of the host is kept.
    pub(super) fn merge(&mut self, later: Self) {
        self.changed.extend(later.changed);
    }

    /// Description of the changes that affect a device; `None` if none does.
    pub(super) fn reason(&self, device: &VmDevice) -> Option<String> {
        let facts = self.before.functions.get(&device.function);
        let path = facts.into_iter().flat_map(|facts| &facts.path);
        let own = std::iter::once(device.function).chain(path.map(|(port, _)| *port));
        let reasons: Vec<&str> = own
            .filter_map(|at| self.changed.get(&at).map(String::as_str))
            .collect();
        (!reasons.is_empty()).then(|| reasons.join("; "))
    }

    /// The affected devices, each with the reason: those that depend on changed state, and all peers of those.
    pub(super) fn affected<'d>(&self, devices: &'d [VmDevice]) -> Vec<(&'d VmDevice, String)> {
        let touched: Vec<(&VmDevice, String)> = devices
            .iter()
            .filter_map(|device| Some((device, self.reason(device)?)))
            .collect();
        let mut affected = touched.clone();
        for device in devices {
            let is_in = |other: &(&VmDevice, String)| other.0.id == device.id;
            let peer = touched.iter().find(|(other, _)| are_peers(device, other));
            if let Some((_, reason)) = peer.filter(|_| !affected.iter().any(is_in)) {
                affected.push((device, reason.clone()));
            }
        }
        affected
    }
}

/// Whether two devices of a VM are in the same P2P domain.
pub(super) fn are_peers(a: &VmDevice, b: &VmDevice) -> bool {
    a.p2p && b.p2p && a.domain == b.domain
}

/// Assesses the current host for a device. An exposure is not new if it is between functions of the VM, `own`, or if
/// the operator has accepted it.
pub(super) fn assess(
    device: &VmDevice,
    good: &DeviceFacts,
    now: &Snapshot,
    own: &BTreeSet<Sbdf>,
    is_accepted: &dyn Fn(&Exposure) -> bool,
) -> Verdict {
    let Some(is) = now.facts(device.function) else {
        return Verdict::Lost;
    };
    let mut exposed = good.new_exposures(&is);
    exposed.retain(|exposure| {
        let mut ends = exposure.to.iter().chain([&exposure.function]);
        let within = ends.all(|end| own.contains(end));
        !within && !is_accepted(exposure)
    });
    if !exposed.is_empty() {
        return Verdict::Exposed(exposed);
    }
    // A device without peers depends only on what it can reach.
    if !device.p2p || (&good.path, good.group) == (&is.path, is.group) {
        return Verdict::Same;
    }
    Verdict::Changed
}

#[cfg(test)]
mod tests {
    use iommu_group::{GroupId, Topology, UntranslatedReach};

    use super::*;

    const SWITCH: &str = include_str!("../../../../../resources/topologies/switch-four-nvme.json");

    fn at(text: &str) -> Sbdf {
        text.parse().unwrap()
    }

    fn device(id: &str, function: &str, domain: Option<Option<&str>>) -> VmDevice {
        VmDevice {
            vm: "web".to_owned(),
            id: id.to_owned(),
            function: at(function),
            p2p: domain.is_some(),
            domain: domain.flatten().map(str::to_owned),
            expose: BTreeSet::new(),
            slot: None,
        }
    }

    fn host() -> Snapshot {
        Snapshot::of(Arc::new(Topology::from_fixture(SWITCH).unwrap()))
    }

    fn alarm(changed: &[&str]) -> Alarm {
        let changed = changed
            .iter()
            .map(|at| (at.parse().unwrap(), format!("{at} differs")));
        Alarm {
            before: Arc::new(host()),
            changed: changed.collect(),
        }
    }

    #[test]
    fn devices_below_what_changed_are_concerned_and_their_peers() {
        let devices = [
            device("peer", "03:00.0", Some(None)),
            device("other", "04:00.0", Some(None)),
            device("elsewhere", "05:00.0", Some(Some("two"))),
            device("alone", "06:00.0", None),
        ];
        let ids = |changed: &[&str]| -> Vec<String> {
            let alarm = alarm(changed);
            let affected = alarm.affected(&devices);
            affected
                .iter()
                .map(|(device, _)| device.id.clone())
                .collect()
        };
        assert_eq!(ids(&["02:00.0"]), ["peer", "other"]);
        assert_eq!(ids(&["05:00.0"]), ["elsewhere"]);
        assert_eq!(ids(&["02:03.0"]), ["alone"]);
        assert_eq!(ids(&["00:04.0"]).len(), 4);
        assert!(ids(&["00:00.0"]).is_empty());
    }

    #[test]
    fn what_was_before_all_changes_is_what_devices_are_compared_with() {
        let mut first = alarm(&["02:00.0"]);
        let mut later = alarm(&["02:01.0"]);
        Arc::make_mut(&mut later.before).functions.clear();
        first.merge(later);
        assert_eq!((first.changed.len(), first.before.functions.len()), (2, 5));
    }

    #[test]
    fn what_a_check_means() {
        let host = host();
        let peer = device("peer", "03:00.0", Some(None));
        let alone = device("alone", "03:00.0", None);
        let good = host.facts(peer.function).unwrap();
        let none = BTreeSet::new();
        let verdict =
            |device: &VmDevice, now: &Snapshot| assess(device, &good, now, &none, &|_| false);
        assert_eq!(verdict(&peer, &host), Verdict::Same);

        let mut now = host.clone();
        now.functions.get_mut(&peer.function).unwrap().group = Some(GroupId(77));
        assert_eq!(verdict(&peer, &now), Verdict::Changed);
        assert_eq!(verdict(&alone, &now), Verdict::Same);

        let exposure = Exposure {
            function: at("05:00.0"),
            to: vec![at("03:00.0")],
            through: vec![at("02:00.0")],
            reach: UntranslatedReach::Yes,
        };
        let mut now = host.clone();
        now.functions.get_mut(&peer.function).unwrap().exposures =
            Some(BTreeSet::from([exposure.clone()]));
        let exposed = Verdict::Exposed(BTreeSet::from([exposure.clone()]));
        assert_eq!(verdict(&peer, &now), exposed);
        assert_eq!(verdict(&alone, &now), exposed);
        // Both functions are in the VM, or the exposure is accepted.
        let own = BTreeSet::from([at("03:00.0"), exposure.function]);
        assert_eq!(assess(&alone, &good, &now, &own, &|_| false), Verdict::Same);
        assert_eq!(assess(&alone, &good, &now, &none, &|_| true), Verdict::Same);

        now.functions.clear();
        assert_eq!(verdict(&alone, &now), Verdict::Lost);
    }
}
