//! Exposures: devices that other devices reach without the IOMMU.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use super::isolation_hole::UntranslatedReach;
use super::model::RoutingModel;
use crate::sbdf::List;
use crate::{Function, Groups, Sbdf};

/// Base class of bridges: it includes host bridges and ISA bridges, which have no PCI bus below them.
const BRIDGE: u32 = 0x06;

/// A device that other devices reach without the IOMMU.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Exposure {
    /// The device that is reached. Naming it accepts the exposure.
    pub function: Sbdf,
    /// The devices that reach it.
    pub to: Vec<Sbdf>,
    /// Where their requests bypass the IOMMU: a port that does not redirect, the bridge of a conventional bus, or the
    /// initiator itself within a multifunction device.
    pub through: Vec<Sbdf>,
    /// How certain the exposure is; never [`UntranslatedReach::No`].
    pub reach: UntranslatedReach,
}

impl Exposure {
    /// Whether the exposure has to be accepted by name: the exposure is certain, or a function on the path could not be
    /// read. An exposure that depends on the root complex or on a device is only a warning.
    #[must_use]
    pub fn needs_consent(&self) -> bool {
        match self.reach {
            UntranslatedReach::Yes | UntranslatedReach::Unknown => true,
            UntranslatedReach::No | UntranslatedReach::Perhaps => false,
        }
    }

    /// Whether one of these devices is an initiator or the target of the exposure.
    #[must_use]
    pub fn involves(&self, devices: &BTreeSet<Sbdf>) -> bool {
        let mut ends = std::iter::once(&self.function).chain(&self.to);
        ends.any(|end| devices.contains(end))
    }
}

impl fmt::Display for Exposure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reach = match (self.reach, self.to.len()) {
            (UntranslatedReach::Perhaps | UntranslatedReach::Unknown, _) => "may reach",
            (UntranslatedReach::Yes | UntranslatedReach::No, 1) => "reaches",
            (UntranslatedReach::Yes | UntranslatedReach::No, _) => "reach",
        };
        let unread = match self.reach {
            UntranslatedReach::Unknown => ", which could not be read",
            UntranslatedReach::Yes | UntranslatedReach::No | UntranslatedReach::Perhaps => "",
        };
        write!(
            f,
            "{} {reach} {} without the IOMMU, through {}{unread}",
            List(&self.to),
            self.function,
            List(&self.through)
        )
    }
}

impl RoutingModel<'_> {
    /// The exposures of the devices of one owner: the functions of others that these devices reach without the IOMMU,
    /// and those of these devices that devices of other virtual machines reach.
    ///
    /// An IOMMU group has one owner, so every function in a group with one of `devices` counts as the owner's. A
    /// function that is bound to a VFIO driver may belong to another virtual machine. Ports, bridges and host bridges
    /// are ignored. The result has one entry for each device that is reached and each degree of certainty, in ascending
    /// order.
    #[must_use]
    pub fn exposures(&self, groups: &Groups, devices: &BTreeSet<Sbdf>) -> Vec<Exposure> {
        let mates = devices.iter().filter_map(|device| groups.group_of(*device));
        let mut own: BTreeSet<Sbdf> = mates.flatten().copied().collect();
        own.extend(devices);
        let all = self.topology().functions().iter();
        let all = all.filter(|function| !function.is_bridge() && function.class() >> 16 != BRIDGE);
        let (own, others): (Vec<&Function>, Vec<&Function>) =
            all.partition(|function| own.contains(&function.sbdf()));
        let mut found: BTreeMap<(Sbdf, UntranslatedReach), [BTreeSet<Sbdf>; 2]> = BTreeMap::new();
        for mine in &own {
            for other in &others {
                let out = (mine.sbdf(), other.sbdf());
                let into = (other.sbdf(), mine.sbdf());
                let guests = other.driver_kind().is_vfio();
                for (from, to) in std::iter::once(out).chain(guests.then_some(into)) {
                    if let Some((reach, at)) = self.gap(from, to) {
                        let [senders, through] = found.entry((to, reach)).or_default();
                        senders.insert(from);
                        through.insert(at);
                    }
                }
            }
        }
        let entry = |((function, reach), [to, through]): (_, [BTreeSet<Sbdf>; 2])| Exposure {
            function,
            to: to.into_iter().collect(),
            through: through.into_iter().collect(),
            reach,
        };
        found.into_iter().map(entry).collect()
    }
}
