//! The changes that a plan makes.

use std::collections::{BTreeMap, BTreeSet};

use hotplug::regroup::obstacle;
use iommu_group::{BlockReason, Plan, Route, Sbdf, UntranslatedReach};

use super::{LABEL, View};
use crate::describe;
use crate::show::{Line, Tone};

impl View<'_> {
    pub(super) fn unplug(&self, plan: &Plan) -> Vec<Line> {
        let mut lines: Vec<Line> = plan
            .unplug
            .iter()
            .filter_map(|sbdf| self.topology.get(*sbdf))
            .map(|function| {
                let line = Line::new().plain(format_args!(
                    "{}  {}",
                    self.names.of(function.sbdf()),
                    describe::what(function)
                ));
                match (function.driver(), obstacle(function)) {
                    (_, Some(driver)) => line.toned(
                        Tone::Warn,
                        format_args!("  {driver}: refused until it is bound to vfio-pci"),
                    ),
                    (Some(driver), None) => line.plain(format_args!("  {driver}")),
                    (None, None) => line,
                }
            })
            .collect();
        if lines.is_empty() {
            lines.push("nothing: no device is touched".into());
        }
        if !plan.lost.is_empty() {
            lines.push(Line::new().toned(
                Tone::Bad,
                format_args!(
                    "lost: virtual functions {}; sriov_numvfs creates new ones, without drivers",
                    self.list(&plan.lost)
                ),
            ));
        }
        lines
    }

    /// The groups that differ after the plan.
    pub(in crate::command) fn groups(&self, plan: &Plan) -> Vec<Line> {
        let after: BTreeSet<&Vec<Sbdf>> = plan.groups.iter().map(|change| &change.after).collect();
        let mut lines: Vec<Line> = after
            .into_iter()
            .filter(|group| !group.is_empty())
            .map(|group| {
                let is_port =
                    |sbdf: &&Sbdf| self.topology.get(**sbdf).is_some_and(|f| f.is_bridge());
                let (ports, devices): (Vec<&Sbdf>, Vec<&Sbdf>) = group.iter().partition(is_port);
                match (devices.as_slice(), ports.as_slice()) {
                    ([], ports) => {
                        format!("{} without devices", self.list(ports.iter().copied())).into()
                    }
                    ([one], []) => format!("{} alone", self.names.of(**one)).into(),
                    ([one], ports) => format!(
                        "{} alone with its port{} {}",
                        self.names.of(**one),
                        if ports.len() == 1 { "" } else { "s" },
                        self.list(ports.iter().copied())
                    )
                    .into(),
                    (devices, ports) => Line::new()
                        .toned(
                            Tone::Name,
                            format_args!("{} together", self.list(devices.iter().copied())),
                        )
                        .plain(if ports.is_empty() {
                            String::new()
                        } else {
                            format!(", with ports {}", self.list(ports.iter().copied()))
                        }),
                }
            })
            .collect();
        if lines.is_empty() {
            lines.push("as they are".into());
        }
        lines
    }

    /// The relevant routes: those between joined functions, and those that change.
    pub(in crate::command) fn routes(&self, plan: &Plan) -> Vec<Line> {
        // Targets by initiator and by route after and before.
        let mut ways: BTreeMap<(Sbdf, Route, Route), BTreeSet<Sbdf>> = BTreeMap::new();
        for change in &plan.routes {
            let key = (change.from, change.after, change.before);
            ways.entry(key).or_default().insert(change.to);
        }
        let only = |set: &BTreeSet<Sbdf>| match set.len() {
            1 => set.first().copied(),
            _ => None,
        };
        let mut lines = Vec::new();
        for ((from, after, before), to) in &ways {
            let mirror = only(to).filter(|to| {
                let back = ways.get(&(*to, *after, *before));
                back.and_then(only) == Some(*from)
            });
            let (sign, to) = match mirror {
                // The line of the other direction shows this pair.
                Some(to) if to < *from => continue,
                Some(to) => ("↔", self.names.of(to)),
                None => ("→", self.list(to)),
            };
            let line = Line::new().plain(format_args!("{} {sign} {to}: ", self.names.of(*from)));
            let (tone, words) = route(*after);
            let line = line.toned(tone, words);
            lines.push(if before == after {
                line.plain(", as it was")
            } else {
                line.plain(format_args!(" (was: {})", route(*before).1))
            });
        }
        lines
    }

    pub(super) fn isolation(&self, plan: &Plan) -> Vec<Line> {
        // Functions that become reachable for the same devices, by title.
        let mut exposed: BTreeMap<(&str, UntranslatedReach, Vec<Sbdf>), Vec<Sbdf>> =
            BTreeMap::new();
        let mut asked: BTreeSet<Sbdf> = BTreeSet::new();
        for exposure in &plan.exposures {
            let wanted = plan.goals.asks_for(exposure);
            if wanted && exposure.needs_consent() {
                asked.insert(exposure.function);
                continue;
            }
            let status = if wanted {
                "you asked for this"
            } else if plan.options.expose.contains(&exposure.function) {
                "you accepted this"
            } else {
                "refused"
            };
            exposed
                .entry((status, exposure.reach, exposure.to.clone()))
                .or_default()
                .push(exposure.function);
        }
        let weaker = || Line::new().toned(Tone::Warn, "weaker     ");
        let mut lines = Vec::new();
        if !asked.is_empty() {
            lines.push(weaker().plain(format_args!(
                "{} reach each other without the IOMMU (you asked for this)",
                self.list(&asked)
            )));
        }
        for ((status, reach, to), functions) in exposed {
            let become_so = match (reach, functions.len()) {
                (UntranslatedReach::Yes, 1) => "becomes",
                (UntranslatedReach::Yes, _) => "become",
                (
                    UntranslatedReach::No | UntranslatedReach::Perhaps | UntranslatedReach::Unknown,
                    _,
                ) => "may become",
            };
            let tone = if status == "refused" {
                Tone::Bad
            } else {
                Tone::Plain
            };
            lines.push(
                weaker()
                    .plain(format_args!(
                        "{} {become_so} reachable from {} without the IOMMU",
                        self.whose(&functions),
                        self.whose(&to)
                    ))
                    .toned(tone, format_args!(" ({status})")),
            );
        }
        lines.push(if lines.is_empty() {
            "unchanged or better: no function becomes reachable without the IOMMU".into()
        } else {
            Line::new().dim("unchanged  everything else")
        });
        lines
    }

    /// Changes that last only while the plan is applied.
    pub(super) fn transients(&self, plan: &Plan) -> Vec<Line> {
        plan.transients
            .iter()
            .map(|transient| {
                let off = transient.from & !transient.to;
                let alive = if transient.alive.is_empty() {
                    "nothing in use below it".to_owned()
                } else {
                    format!("{} keep running below it", self.whose(&transient.alive))
                };
                format!(
                    "{} is without {off} during the rescan, {alive}",
                    self.names.of(transient.port)
                )
                .into()
            })
            .collect()
    }

    /// How to get the same at boot: the kernel argument if it is sufficient, otherwise the alternative.
    pub(super) fn boot(&self, plan: &Plan, command: &str) -> Vec<Line> {
        let Some(boot) = &plan.boot else {
            return Vec::new();
        };
        let fits = boot.argument.len() + LABEL + 2 <= self.width;
        let mut lines = vec![if fits {
            Line::from(boot.argument.clone())
        } else {
            Line::new().strong(format_args!("p2pctl kernel-args {command}"))
        }];
        if !boot.joins {
            lines.push("does not put them into one group at boot; only the plan does".into());
        }
        if !boot.wider.is_empty() {
            lines.push(
                format!(
                    "puts {} into their group too, which the plan does not",
                    self.list(&boot.wider)
                )
                .into(),
            );
        }
        lines
    }
}

/// A route as text.
fn route(route: Route) -> (Tone, &'static str) {
    match route {
        Route::SwitchLocal => (Tone::Good, "direct in the switch"),
        Route::SwitchLocalTranslated => (Tone::Good, "direct in the switch, translated (ATS)"),
        Route::HostBridge => (Tone::Good, "through the IOMMU"),
        Route::Blocked(BlockReason::RootComplex { .. }) => (
            Tone::Warn,
            "to a root complex that is not known to route P2P",
        ),
        Route::Blocked(_) => (Tone::Warn, "blocked"),
    }
}
