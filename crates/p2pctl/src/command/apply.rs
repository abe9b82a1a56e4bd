//! `p2pctl apply`: carries a plan out.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use hotplug::regroup::{Blocker, Outcome, Refusal, Regroup, RegroupError, Report, StateDir};
use iommu_group::{Goals, Plan};

use super::plan::{View, make};
use crate::answer::Answer;
use crate::cli::{Global, StateArgs};
use crate::goals::GoalArgs;
use crate::host;
use crate::json;
use crate::progress::{Teller, seconds};
use crate::show::{Line, Terminal, Text, Tone};
use crate::source::Source;

/// What is asked for.
pub(crate) struct Request<'a> {
    pub(crate) plan: Option<&'a Path>,
    pub(crate) goals: &'a GoalArgs,
    pub(crate) dry_run: bool,
}

/// Carries a plan out, or shows what that would do.
pub(crate) fn run(
    request: &Request<'_>,
    global: &Global,
    state: &StateArgs,
    terminal: &Terminal,
) -> Result<Answer> {
    let host = host::live(global)?;
    let source = Source::load(global)?;
    if source.topology.needs_privilege() {
        bail!("only root can change {}: run it as root", source.from);
    }
    let view = View {
        topology: &source.topology,
        names: source.names,
        width: terminal.width,
    };
    let plan = match request.plan {
        Some(file) => {
            let text = fs::read_to_string(file)
                .with_context(|| format!("cannot read {}", file.display()))?;
            Plan::from_json(&text).with_context(|| format!("cannot use {}", file.display()))?
        }
        None => match make(&source, request.goals)? {
            Ok(plan) => plan,
            Err(refusal) => {
                let answer = if global.json {
                    Answer::json(&json::plan::document(&Err(refusal))?)?
                } else {
                    Answer::text(view.refusal(&request.goals.goals(), &refusal))
                };
                return Ok(answer.about(&source).refused_if(true));
            }
        },
    };
    let regroup = Regroup::new(&host, &[], StateDir::new(&state.state_dir));
    if request.dry_run {
        let blockers = regroup.check(&plan)?;
        return dry_run(&view, &source, &plan, blockers, global.json);
    }
    let mut teller = Teller::new(source.names, terminal, global.json);
    let result = regroup.apply(&plan, &mut |progress| teller.tell(progress));
    match result {
        Ok(report) => {
            let failed = report.outcome != Outcome::New || !report.remains.is_empty();
            let answer = if global.json {
                Answer::json(&json::apply::report(&report))?
            } else {
                let took = seconds(teller.elapsed());
                Answer::text(told(&view, &report, &took))
            };
            Ok(answer.failed_if(failed))
        }
        Err(RegroupError::Refused(refusal)) => {
            let answer = if global.json {
                Answer::json(&json::apply::refusal(&refusal))?
            } else {
                Answer::text(refused(&view, &plan.goals, &refusal))
            };
            Ok(answer.about(&source).refused_if(true))
        }
        Err(error) => Err(error.into()),
    }
}

fn dry_run(
    view: &View<'_>,
    source: &Source,
    plan: &Plan,
    blockers: Vec<Blocker>,
    json: bool,
) -> Result<Answer> {
    let refused = !blockers.is_empty();
    let refusal = Refusal { blockers };
    if json {
        let answer = if refused {
            Answer::json(&json::apply::refusal(&refusal))?
        } else {
            Answer::json(&json::plan::document(&Ok(plan.clone()))?)?
        };
        return Ok(answer.about(source).refused_if(refused));
    }
    let mut text = Text::new();
    if refused {
        text.extend(self::refused(view, &plan.goals, &refusal));
        text.blank();
    }
    text.extend(view.plan(plan));
    Ok(Answer::text(text).about(source).refused_if(refused))
}

/// Why nothing was done, one line per reason.
fn refused(view: &View<'_>, goals: &Goals, refusal: &Refusal) -> Text {
    let mut text = Text::new();
    let title = Line::new().strong(format_args!("{}: ", view.title(goals)));
    text.push(title.toned(Tone::Bad, "refused, and nothing was changed"));
    text.blank();
    let lines = refusal.blockers.iter().map(|blocker| {
        let words = view.names.shorten(&blocker.to_string());
        Line::new().toned(Tone::Bad, words)
    });
    view.section(&mut text, "blocked", lines.collect());
    text
}

/// How it ended, what is true now, and how to go back.
pub(super) fn told(view: &View<'_>, report: &Report, took: &str) -> Text {
    let mut text = Text::new();
    let plan = &report.plan;
    let title = Line::new().strong(format_args!("{}: ", view.title(&plan.goals)));
    let complete = report.remains.is_empty();
    let end = match (report.outcome, complete) {
        (Outcome::New, true) => title.toned(Tone::Good, format_args!("done in {took}")),
        (Outcome::New, false) => title.toned(Tone::Warn, "done, but not all is back"),
        (Outcome::Old, true) if report.failure.is_some() => {
            title.toned(Tone::Bad, "failed, and undone: the host is as it was")
        }
        (Outcome::Old, true) => title.toned(Tone::Warn, "undone: the host is as it was"),
        (Outcome::Old, false) => title.toned(Tone::Bad, "undone, but not all is as it was"),
        (Outcome::Rebooted, _) => title.toned(
            Tone::Warn,
            "the machine was started anew meanwhile, which undid it",
        ),
    };
    text.push_wrapped(&end, view.width, 2);
    text.blank();
    if let Some((action, error)) = &report.failure {
        let words = view.names.shorten(&format!("{action}: {error}"));
        let line = Line::new().toned(Tone::Bad, words);
        view.section(&mut text, "failed", vec![line]);
    }
    let remains = report.remains.iter();
    let remains = remains.map(|difference| view.names.shorten(&difference.to_string()).into());
    let label = if report.outcome == Outcome::New {
        "lost"
    } else {
        "differs"
    };
    view.section(&mut text, label, remains.collect());
    if report.outcome == Outcome::New {
        view.section(&mut text, "groups", view.groups(plan));
        view.section(&mut text, "route", view.routes(plan));
        let held: Vec<String> = plan
            .ports
            .iter()
            .filter(|change| change.hold)
            .map(|change| view.names.of(change.port))
            .collect();
        if !held.is_empty() {
            let line = format!(
                "{} and the ports above are kept awake: asleep they would forget their ACS",
                held.join(" ")
            );
            view.section(&mut text, "held", vec![line.into()]);
        }
        view.section(&mut text, "back", view.back(&plan.goals));
    }
    let journal = report.journal.display().to_string();
    view.section(&mut text, "journal", vec![journal.into()]);
    text
}
