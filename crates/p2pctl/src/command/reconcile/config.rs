//! The file of `p2pctl reconcile`: domains and isolated functions.

use std::collections::BTreeSet;

use iommu_group::{Goals, PlanOptions, RoutePreference, Sbdf};
use serde::Deserialize;

/// The desired state of a host.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// Sets of functions that share a group.
    #[serde(default)]
    domain: Vec<Domain>,
    /// Functions whose groups have no other devices.
    #[serde(default)]
    isolate: BTreeSet<Sbdf>,
    /// Preferred route of requests within the domains.
    #[serde(default)]
    route: RoutePreference,
    /// Functions that may become reachable without the IOMMU.
    #[serde(default)]
    expose: BTreeSet<Sbdf>,
    /// Functions that may join a group with named ones, or be unplugged temporarily.
    #[serde(default)]
    with: BTreeSet<Sbdf>,
}

#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Domain {
    functions: BTreeSet<Sbdf>,
}

impl Config {
    /// The goals and options of a plan.
    pub(crate) fn desired(self) -> (Goals, PlanOptions) {
        let goals = Goals {
            join: self.domain.into_iter().map(|d| d.functions).collect(),
            isolate: self.isolate,
            ..Goals::default()
        };
        let options = PlanOptions {
            route: self.route,
            expose: self.expose,
            with: self.with,
        };
        (goals, options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_gives_goals_and_options() {
        let text = include_str!("../../../../../resources/p2p-domains.toml");
        let (goals, options) = toml::from_str::<Config>(text).unwrap().desired();
        let at = |text: &str| text.parse::<Sbdf>().unwrap();
        assert_eq!(goals.join, [BTreeSet::from([at("03:00.0"), at("04:00.0")])]);
        assert_eq!(goals.isolate, BTreeSet::from([at("05:00.0")]));
        assert_eq!(options, PlanOptions::default());
    }

    #[test]
    fn unknown_fields_are_refused() {
        assert!(toml::from_str::<Config>("domains = []").is_err());
        assert!(toml::from_str::<Config>("isolate = [\"x\"]").is_err());
        assert_eq!(toml::from_str::<Config>("").unwrap(), Config::default());
    }
}
