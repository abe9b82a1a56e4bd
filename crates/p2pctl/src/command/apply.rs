//! `p2pctl apply`: carries a plan out.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use hotplug::regroup::{Blocker, Outcome, Progress, Regroup, RegroupError, Report, StateDir};
use iommu_group::{Goals, Plan, PlanOptions};

use super::plan::{View, make, make_wish};
use super::remote::{Daemon, Ended};
use crate::answer::Answer;
use crate::cli::Global;
use crate::goals::GoalArgs;
use crate::host;
use crate::json;
use crate::progress::{Teller, seconds};
use crate::show::{Line, Terminal, Text, Tone};
use crate::source::Source;

/// What is to be carried out.
pub(crate) enum What<'a> {
    /// A plan in a file.
    File(&'a Path),
    /// What the command line says.
    Args(&'a GoalArgs),
    /// What is missing of this, if anything.
    Wish {
        goals: &'a Goals,
        options: &'a PlanOptions,
    },
}

/// What is asked for.
pub(crate) struct Request<'a> {
    pub(crate) what: What<'a>,
    pub(crate) dry_run: bool,
    /// How long a guest may take to let go of a device.
    pub(crate) guest: Duration,
    /// Where changes leave their journals if there is no daemon.
    pub(crate) state: &'a Path,
    /// Where the daemon listens if there is one.
    pub(crate) daemon: &'a Path,
}

/// Carries a plan out, or shows what that would do.
pub(crate) fn run(request: &Request<'_>, global: &Global, terminal: &Terminal) -> Result<Answer> {
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
    let (goals, made) = match &request.what {
        What::File(file) => {
            let text = fs::read_to_string(file)
                .with_context(|| format!("cannot read {}", file.display()))?;
            let plan =
                Plan::from_json(&text).with_context(|| format!("cannot use {}", file.display()))?;
            (plan.goals.clone(), Ok(plan))
        }
        What::Args(args) => (args.goals(), make(&source, args)?),
        What::Wish { goals, options } => {
            let made = make_wish(&source, goals, options)?;
            ((*goals).clone(), made)
        }
    };
    let plan = match made {
        Ok(plan) => plan,
        Err(refusal) => {
            let answer = if global.json {
                Answer::json(&json::plan::document(&Err(refusal))?)?
            } else {
                Answer::text(view.refusal(&goals, &refusal))
            };
            return Ok(answer.about(&source).refused_if(true));
        }
    };
    let wish = matches!(request.what, What::Wish { .. });
    if wish && plan.steps.is_empty() && plan.is_acceptable() {
        return if global.json {
            Answer::json(&json::apply::nothing())
        } else {
            Ok(Answer::text(view.plan(&plan)))
        };
    }
    let regroup = Regroup::new(&host, &[], StateDir::new(request.state));
    if request.dry_run {
        let blockers = regroup.check(&plan)?;
        return dry_run(&view, &source, &plan, blockers, global.json);
    }
    let mut teller = Teller::new(source.names, terminal, global.json);
    let mut tell = |progress: &Progress<'_>| teller.tell(progress);
    let mut blockers = Vec::new();
    let ended = match Daemon::at(request.daemon)? {
        Some(daemon) => daemon.apply(plan.clone(), request.guest, &mut tell)?,
        None => match regroup.apply(&plan, &mut tell) {
            Ok(report) => Ended::Report(Box::new(report)),
            Err(RegroupError::Refused(refusal)) => {
                blockers = refusal.blockers;
                Ended::Refused(blockers.iter().map(ToString::to_string).collect())
            }
            Err(error) => return Err(error.into()),
        },
    };
    match ended {
        Ended::Report(report) => {
            let failed = report.outcome != Outcome::New || !report.remains.is_empty();
            let answer = if global.json {
                Answer::json(&json::apply::report(&report))?
            } else {
                let took = seconds(teller.elapsed());
                Answer::text(told(&view, &report, &took))
            };
            Ok(answer.failed_if(failed))
        }
        Ended::Refused(reasons) => {
            let answer = if global.json {
                Answer::json(&json::apply::refusal(&reasons, &blockers))?
            } else {
                Answer::text(refused(&view, &plan.goals, &reasons))
            };
            Ok(answer.about(&source).refused_if(true))
        }
        Ended::Nothing => bail!("the daemon did nothing"),
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
    let reasons: Vec<String> = blockers.iter().map(ToString::to_string).collect();
    if json {
        let answer = if refused {
            Answer::json(&json::apply::refusal(&reasons, &blockers))?
        } else {
            Answer::json(&json::plan::document(&Ok(plan.clone()))?)?
        };
        return Ok(answer.about(source).refused_if(refused));
    }
    let mut text = Text::new();
    if refused {
        text.extend(self::refused(view, &plan.goals, &reasons));
        text.blank();
    }
    text.extend(view.plan(plan));
    Ok(Answer::text(text).about(source).refused_if(refused))
}

/// Why nothing was done, one line per reason.
fn refused(view: &View<'_>, goals: &Goals, reasons: &[String]) -> Text {
    let mut text = Text::new();
    let title = Line::new().strong(format_args!("{}: ", view.title(goals)));
    text.push(title.toned(Tone::Bad, "refused, and nothing was changed"));
    text.blank();
    let lines = reasons
        .iter()
        .map(|reason| Line::new().toned(Tone::Bad, view.names.shorten(reason)));
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
