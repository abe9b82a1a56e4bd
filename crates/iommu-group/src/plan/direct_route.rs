//! Opens direct routes between joined functions by the least permissive means.

use std::collections::BTreeSet;

use super::planner::Planner;
use super::{Purpose, RoutePreference};
use crate::config::{AcsBits, EgressVector};
use crate::{Function, GroupModel, Route, Sbdf};

/// A change of a port that lets requests go directly.
struct Means {
    control: AcsBits,
    egress: Option<EgressVector>,
}

impl Planner<'_> {
    /// Opens routes between the functions of every joined set, as requested.
    pub(super) fn open_routes(&mut self) {
        if self.options.route == RoutePreference::Iommu {
            return;
        }
        for set in self.goals.join.clone() {
            for port in self.junctions(&set) {
                if !self.goals.acs.contains_key(&port) {
                    self.open(port, &set);
                }
            }
        }
    }

    /// The ports at which requests between functions of a set turn: those directly below the lowest common bridge of
    /// two functions.
    pub(super) fn junctions(&self, set: &BTreeSet<Sbdf>) -> BTreeSet<Sbdf> {
        let routing = self.routing();
        let pairs = pairs(set);
        pairs
            .filter_map(|(from, to)| routing.path(from, to).ingress)
            .filter(|port| self.port_acs(*port).is_some())
            .collect()
    }

    /// Whether requests from any function of a set go directly at a port.
    pub(super) fn straight_to(&self, port: Sbdf, set: &BTreeSet<Sbdf>) -> bool {
        self.ways_at(&self.model, port, set)
            .any(|(_, _, route)| is_straight(route))
    }

    /// The routes between functions of a set that a port decides.
    fn ways_at<'m>(
        &self,
        model: &'m GroupModel<'_>,
        port: Sbdf,
        set: &'m BTreeSet<Sbdf>,
    ) -> impl Iterator<Item = (Sbdf, Sbdf, Route)> + use<'m> {
        let routing = crate::RoutingModel::of(model);
        pairs(set).filter_map(move |(from, to)| {
            let path = routing.path(from, to);
            (path.ingress == Some(port)).then_some((from, to, path.route))
        })
    }

    fn open(&mut self, port: Sbdf, set: &BTreeSet<Sbdf>) {
        let ways: Vec<(Sbdf, Sbdf, Route)> = self.ways_at(&self.model, port, set).collect();
        if ways.iter().all(|(_, _, route)| is_straight(*route)) {
            self.let_completions_pass(port, set);
            return;
        }
        let mild = [self.by_translation(port), self.by_egress(port, &ways)];
        for means in mild.into_iter().flatten() {
            if self.opens(port, &means, set) && self.newly_exposed(port, &means, set).is_empty() {
                return self.use_means(port, &means);
            }
        }
        let Some(means) = self
            .by_redirect_off(port)
            .filter(|means| self.opens(port, means, set))
        else {
            return;
        };
        let through_iommu = ways
            .iter()
            .all(|(_, _, route)| is_straight(*route) || *route == Route::HostBridge);
        let stay = self.options.route == RoutePreference::Mildest
            && through_iommu
            && !self.newly_exposed(port, &means, set).is_empty();
        if !stay {
            self.use_means(port, &means);
        }
    }

    /// Clears completion redirect at a port if completions of direct requests take a detour because of it.
    fn let_completions_pass(&mut self, port: Sbdf, set: &BTreeSet<Sbdf>) {
        let routing = self.routing();
        let detour = pairs(set).any(|(from, to)| {
            let path = routing.path(from, to);
            path.egress == Some(port) && path.completions_detour
        });
        if detour {
            let control = self.control(port) & !AcsBits::CR;
            self.set_acs_word(port, control, Purpose::OpenRoute);
        }
    }

    /// Only translated requests go directly: the mappings of the IOMMU still decide which targets are reachable.
    fn by_translation(&self, port: Sbdf) -> Option<Means> {
        let acs = self.port_acs(port)?;
        let control = self.control(port);
        let possible = acs.capability.contains(AcsBits::DT) && !control.contains(AcsBits::TB);
        let keep = acs.capability & (AcsBits::SV | AcsBits::RR | AcsBits::UF | AcsBits::DT);
        possible.then_some(Means {
            control: (control & !(AcsBits::CR | AcsBits::EC)) | keep,
            egress: None,
        })
    }

    /// Only requests to the ports of the other functions go directly.
    fn by_egress(&self, port: Sbdf, ways: &[(Sbdf, Sbdf, Route)]) -> Option<Means> {
        let acs = self.port_acs(port)?;
        let needed = AcsBits::EC | AcsBits::RR;
        if !acs.capability.contains(needed) {
            return None;
        }
        let routing = self.routing();
        let numbers: Option<Vec<u8>> = ways
            .iter()
            .map(|(from, to, _)| routing.egress_port_number(routing.path(*from, *to).egress?))
            .collect();
        let vector = self.model.egress(port)?.open_only_to(&numbers?);
        // The vector must cover every port of the switch. Otherwise the routes to the other ports are unknown.
        let switch = self.topology.upstream(port)?;
        let knows = |other: &Function| {
            let number = routing.egress_port_number(other.sbdf());
            number.and_then(|number| vector.stops(number)).is_some()
        };
        if !self.topology.children(switch.sbdf()).all(knows) {
            return None;
        }
        let keep = acs.capability & (AcsBits::SV | AcsBits::UF | needed);
        Some(Means {
            control: (self.control(port) & !AcsBits::CR) | keep,
            egress: Some(vector),
        })
    }

    /// All requests go directly, to any target.
    fn by_redirect_off(&self, port: Sbdf) -> Option<Means> {
        let acs = self.port_acs(port)?;
        let keep = acs.capability & (AcsBits::SV | AcsBits::UF);
        Some(Means {
            control: (self.control(port) & !AcsBits::REDIRECT) | keep,
            egress: None,
        })
    }

    fn with_means<'m>(&'m self, port: Sbdf, means: &Means) -> GroupModel<'m> {
        let mut trial = self.model.clone();
        if let Some(vector) = means.egress {
            trial.set_egress(port, vector);
        }
        trial.set_acs_control(port, means.control);
        trial
    }

    /// Whether all routes at the port are direct with the means.
    fn opens(&self, port: Sbdf, means: &Means, set: &BTreeSet<Sbdf>) -> bool {
        let trial = self.with_means(port, means);
        self.ways_at(&trial, port, set)
            .all(|(_, _, route)| is_straight(route))
    }

    /// The devices that become reachable at the port and are not meant to be.
    fn newly_exposed(&self, port: Sbdf, means: &Means, set: &BTreeSet<Sbdf>) -> BTreeSet<Sbdf> {
        let before = self.routing();
        let trial = self.with_means(port, means);
        let after = crate::RoutingModel::of(&trial);
        let Some(switch) = self.topology.upstream(port).map(Function::sbdf) else {
            return BTreeSet::new();
        };
        let mut exposed = BTreeSet::new();
        for other in self
            .topology
            .children(switch)
            .map(Function::sbdf)
            .filter(|other| *other != port)
        {
            let newly = after.goes_straight(port, other) && !before.goes_straight(port, other);
            if newly {
                let all_named = self.devices_below(port).all(|from| set.contains(&from));
                let accepted =
                    |to: &Sbdf| self.options.expose.contains(to) || (all_named && set.contains(to));
                exposed.extend(self.devices_below(other).filter(|to| !accepted(to)));
            }
        }
        exposed
    }

    fn use_means(&mut self, port: Sbdf, means: &Means) {
        // The vector is written first: it has no effect until egress control is set.
        if let Some(vector) = means.egress {
            self.set_egress_vector(port, vector);
        }
        self.set_acs_word(port, means.control, Purpose::OpenRoute);
    }
}

/// All ordered pairs of a set.
pub(super) fn pairs(set: &BTreeSet<Sbdf>) -> impl Iterator<Item = (Sbdf, Sbdf)> {
    set.iter().flat_map(move |from| {
        set.iter()
            .filter(move |to| *to != from)
            .map(move |to| (*from, *to))
    })
}

fn is_straight(route: Route) -> bool {
    matches!(route, Route::SwitchLocal | Route::SwitchLocalTranslated)
}
