//! `p2pctl plan` and `p2pctl kernel-args`: the changes that would give other groups and routes.

mod changes;
mod steps;

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context, Result, bail};
use hotplug::regroup::Forecast;
use iommu_group::{
    Goals, Infeasible, Kernel, Plan, PlanOptions, Refusal, Route, RouteChange, Sbdf, Topology,
    Warning,
};

use super::forecast::forecast;
use crate::answer::Answer;
use crate::cli::{Global, PlanArgs};
use crate::goals::GoalArgs;
use crate::json;
use crate::names::Names;
use crate::show::{Line, Text, Tone};
use crate::source::Source;

/// Width of the label column.
const LABEL: usize = 11;

/// Computes a plan and shows it, or writes it to a file. It is refused if it is infeasible, if its warnings are not
/// accepted, or if `apply` would refuse it now.
pub(crate) fn run(
    source: &Source,
    args: &PlanArgs,
    global: &Global,
    width: usize,
) -> Result<Answer> {
    let made = make(source, &args.goals)?;
    let forecast = match &made {
        Ok(plan) if !plan.steps.is_empty() => forecast(global, source, plan, &args.at)?,
        _ => None,
    };
    let view = View {
        forecast,
        ..View::new(source, width)
    };
    let refused = !made.as_ref().is_ok_and(Plan::is_acceptable) || view.is_blocked();
    let document = json::plan(&made, view.forecast.as_ref())?;
    let mut answer = Answer::either(global.json, &document, || match &made {
        Ok(plan) => view.plan(plan),
        Err(refusal) => view.refusal(&args.goals.goals(), refusal),
    })?;
    if let Some(file) = &args.output {
        answer = match &made {
            Ok(plan) if !refused => {
                fs::write(file, plan.to_json())
                    .with_context(|| format!("cannot write {}", file.display()))?;
                answer.note(format_args!("the plan is in {}", file.display()))
            }
            _ => answer.note(format_args!(
                "{} was not written: the plan is refused",
                file.display()
            )),
        };
    }
    Ok(answer.about(source).refused_if(refused))
}

/// Shows the kernel argument that is closest to a plan.
pub(crate) fn kernel_args(
    source: &Source,
    args: &GoalArgs,
    json: bool,
    width: usize,
) -> Result<Answer> {
    let plan = match make(source, args)? {
        Ok(plan) => plan,
        Err(refusal) => {
            return View::new(source, width).refused(source, &args.goals(), &refusal, json);
        }
    };
    if json {
        return Answer::json(&json::kernel_args(&plan));
    }
    let Some(boot) = &plan.boot else {
        return Ok(Answer::text(Text::new())
            .note("no argument is needed: the kernel sets this up by itself")
            .about(source));
    };
    let mut answer = Answer::raw(format!("{}\n", boot.argument));
    if !boot.joins {
        answer = answer.note(
            "with this argument the functions are not in one group after a boot: only the plan does that",
        );
    }
    if !boot.wider.is_empty() {
        let who: Vec<String> = boot.wider.iter().map(|f| source.names.of(*f)).collect();
        answer = answer.note(format_args!(
            "with this argument {} join the same group at boot; with the plan they do not",
            who.join(" ")
        ));
    }
    Ok(answer.about(source))
}

pub(super) fn make(source: &Source, args: &GoalArgs) -> Result<Result<Plan, Refusal>> {
    if args.goals() == Goals::default() {
        bail!("nothing to plan: give --join, --isolate or --acs");
    }
    make_plan(source, &args.goals(), &args.options())
}

pub(super) fn make_plan(
    source: &Source,
    goals: &Goals,
    options: &PlanOptions,
) -> Result<Result<Plan, Refusal>> {
    let joined = goals.join.iter().flatten();
    let named = joined.chain(&goals.isolate).chain(goals.acs.keys());
    let named = named.chain(&options.expose).chain(&options.with).copied();
    source.must_have(&named.collect::<Vec<Sbdf>>())?;
    let kernel = Kernel::of(source.topology());
    Ok(Plan::make(source.topology(), &kernel, goals, options))
}

/// Renders plans as text.
pub(super) struct View<'a> {
    pub(super) topology: &'a Topology,
    pub(super) names: Names,
    pub(super) width: usize,
    /// The effects on the current users of the devices, if known.
    pub(super) forecast: Option<Forecast>,
}

impl<'a> View<'a> {
    pub(super) fn new(source: &'a Source, width: usize) -> Self {
        Self {
            topology: source.topology(),
            names: source.names,
            width,
            forecast: None,
        }
    }
}

impl View<'_> {
    fn list<'f>(&self, functions: impl IntoIterator<Item = &'f Sbdf>) -> String {
        self.names.list(functions)
    }

    pub(super) fn section(&self, text: &mut Text, label: &str, lines: Vec<Line>) {
        text.push_section((label, LABEL), lines, self.width);
    }

    /// The goals as text.
    pub(super) fn title(&self, goals: &Goals) -> String {
        let mut parts: Vec<String> = goals
            .join
            .iter()
            .map(|set| format!("join {}", self.list(set)))
            .collect();
        if !goals.isolate.is_empty() {
            parts.push(format!("isolate {}", self.list(&goals.isolate)));
        }
        parts.extend(
            goals
                .acs
                .iter()
                .map(|(port, bits)| format!("set ACS of {} to {bits}", self.names.of(*port))),
        );
        if parts.is_empty() {
            "plan".to_owned()
        } else {
            parts.join(", ")
        }
    }

    pub(super) fn plan(&self, plan: &Plan) -> Text {
        let mut text = Text::new();
        let goals = &plan.goals;
        let title = Line::new().strong(format_args!("{}: ", self.title(goals)));
        if plan.steps.is_empty() && plan.is_acceptable() {
            text.push(title.toned(
                Tone::Good,
                "nothing to do: the host is in this state already",
            ));
            return text;
        }
        let options = self.options_to_accept(plan);
        let joined = |change: &&RouteChange| {
            let sets = plan.goals.join.iter();
            sets.into_iter()
                .any(|set| set.contains(&change.from) && set.contains(&change.to))
        };
        let is_blocked_route = plan
            .routes
            .iter()
            .filter(joined)
            .any(|change| matches!(change.after, Route::Blocked(_)));
        let answer = if plan.is_acceptable() && self.is_blocked() {
            title.toned(Tone::Bad, "refused while it is blocked")
        } else if plan.is_acceptable() && is_blocked_route {
            title.toned(
                Tone::Warn,
                "can be done, but requests between them would not arrive",
            )
        } else if plan.is_acceptable() {
            title.toned(Tone::Good, "can be done")
        } else if options.is_empty() {
            title.toned(Tone::Bad, "refused")
        } else {
            title.toned(Tone::Bad, format_args!("refused unless {options}"))
        };
        text.push_wrapped(&answer, self.width, 2);
        text.blank();
        self.section(&mut text, "refused", self.warnings(plan));
        self.section(&mut text, "blocked", self.blocked());
        self.section(&mut text, "guests", self.guests());
        self.section(&mut text, "unplug", self.unplug(plan));
        self.section(&mut text, "groups", self.groups(plan));
        self.section(&mut text, "route", self.routes(plan));
        self.section(&mut text, "isolation", self.isolation(plan));
        self.section(&mut text, "meanwhile", self.transients(plan));
        text.extend(self.steps(plan));
        self.section(
            &mut text,
            "at boot",
            self.boot(plan, &self.goal_options(goals)),
        );
        self.section(&mut text, "back", self.back(plan));
        text.blank();
        text.push(match (plan.is_acceptable(), self.is_blocked()) {
            (true, false) => "nothing was changed",
            (true, true) => "nothing was changed. `apply` would refuse this plan now",
            (false, _) => "nothing was changed. This plan is refused as it stands",
        });
        text
    }

    /// The options that accept the plan's warnings, if that is possible.
    fn options_to_accept(&self, plan: &Plan) -> String {
        if plan.objections.iter().any(|o| o.remedy().is_none()) {
            return String::new();
        }
        let mut words: Vec<String> = Vec::new();
        for option in ["expose", "with"] {
            let mut functions: Vec<Sbdf> = plan
                .objections
                .iter()
                .filter_map(Warning::remedy)
                .filter(|(name, _)| *name == option)
                .map(|(_, function)| function)
                .collect();
            functions.sort_unstable();
            functions.dedup();
            if !functions.is_empty() {
                words.push(format!("--{option} {}", self.list(&functions)));
            }
        }
        words.join(" ")
    }

    fn warnings(&self, plan: &Plan) -> Vec<Line> {
        plan.objections
            .iter()
            .map(|objection| {
                Line::new().toned(Tone::Bad, self.names.shorten(&objection.to_string()))
            })
            .collect()
    }

    /// The goals as command-line options.
    fn goal_options(&self, goals: &Goals) -> String {
        let mut words: Vec<String> = goals
            .join
            .iter()
            .map(|set| format!("--join {}", self.list(set)))
            .collect();
        if !goals.isolate.is_empty() {
            words.push(format!("--isolate {}", self.list(&goals.isolate)));
        }
        let ports = goals.acs.iter();
        words
            .extend(ports.map(|(port, bits)| format!("--acs {}={bits:04x}", self.names.of(*port))));
        words.join(" ")
    }

    /// The command that restores the previous groups.
    pub(super) fn back(&self, plan: &Plan) -> Vec<Line> {
        let goals = &plan.goals;
        let mut words = String::new();
        if !goals.join.is_empty() {
            let joined: Vec<Sbdf> = goals.join.iter().flatten().copied().collect();
            words.push_str(&format!(" --isolate {}", self.list(&joined)));
        }
        for set in self.separated(plan) {
            words.push_str(&format!(" --join {}", self.list(&set)));
        }
        if goals.join.is_empty() && goals.isolate.is_empty() {
            for port in goals.acs.keys() {
                let acs = self.topology.get(*port).and_then(|f| f.acs().registers());
                if let Some(now) = acs.map(|acs| acs.control) {
                    words.push_str(&format!(" --acs {}={now:04x}", self.names.of(*port)));
                }
            }
        }
        if words.is_empty() {
            return Vec::new();
        }
        vec![Line::new().strong(format_args!("p2pctl plan{words}"))]
    }

    /// The sets of devices that shared a group and of which some are isolated.
    fn separated(&self, plan: &Plan) -> BTreeSet<Vec<Sbdf>> {
        let isolated = plan.goals.isolate.iter();
        let changes = isolated.filter_map(|function| {
            let mut changes = plan.groups.iter();
            changes.find(|change| change.function == *function)
        });
        let is_device = |sbdf: &Sbdf| self.topology.get(*sbdf).is_some_and(|f| !f.is_bridge());
        changes
            .map(|change| {
                let before = change.before.iter().copied();
                before.filter(is_device).collect::<Vec<Sbdf>>()
            })
            .filter(|set| set.len() > 1)
            .collect()
    }

    /// The answer for goals that cannot be reached.
    pub(super) fn refused(
        &self,
        source: &Source,
        goals: &Goals,
        refusal: &Refusal,
        json: bool,
    ) -> Result<Answer> {
        let document = json::plan(&Err(refusal.clone()), None)?;
        let answer = Answer::either(json, &document, || self.refusal(goals, refusal))?;
        Ok(answer.about(source).refused_if(true))
    }

    /// Text for goals that cannot be reached.
    fn refusal(&self, goals: &Goals, refusal: &Refusal) -> Text {
        let mut text = Text::new();
        text.push(
            Line::new()
                .strong(format_args!("{}: ", self.title(goals)))
                .toned(Tone::Bad, "refused"),
        );
        text.blank();
        let reasons = refusal.reasons.iter();
        let reasons = reasons.map(|reason| self.names.shorten(&reason.to_string()).into());
        self.section(&mut text, "why", reasons.collect());
        let mut advice: Vec<&str> = refusal.reasons.iter().filter_map(hint).collect();
        advice.dedup();
        self.section(
            &mut text,
            "so",
            advice.into_iter().map(Line::from).collect(),
        );
        text
    }
}

/// Advice for a goal that cannot be reached.
fn hint(reason: &Infeasible) -> Option<&'static str> {
    Some(match reason {
        Infeasible::NoIommu | Infeasible::NoGroup { .. } => {
            "switch the IOMMU on in the firmware, and boot with intel_iommu=on on Intel"
        }
        Infeasible::DifferentRootPorts { .. } => {
            "put the cards below one switch; routes through the IOMMU between two groups: p2pctl matrix --policy same-vm"
        }
        Infeasible::VirtualFunction { .. } => {
            "name the physical function, or remove and create the virtual functions (sriov_numvfs)"
        }
        Infeasible::NoAcs { .. } | Infeasible::NotImplemented { .. } => {
            "p2pctl topology shows what each port has"
        }
        _ => return None,
    })
}
