//! `p2pctl apply`: applies a plan.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use hotplug::regroup::{Blocker, Outcome, Regroup, RegroupError, Report, StateDir, VmDevice};
use iommu_group::{Goals, Plan, PlanOptions};

use super::forecast::{by_guest, forecast};
use super::interrupt::Interrupt;
use super::plan::{View, make, make_plan};
use super::remote::{Daemon, Ended};
use crate::answer::Answer;
use crate::cli::{ChangeArgs, Global};
use crate::goals::GoalArgs;
use crate::host;
use crate::json::{self, Reason, with_text};
use crate::progress::{ProgressPrinter, seconds};
use crate::show::{Line, Terminal, Text, Tone};
use crate::source::Source;

/// The source of a plan.
pub(crate) enum Wanted<'a> {
    /// A plan in a file.
    File(&'a Path),
    /// The goals on the command line.
    Args(&'a GoalArgs),
    /// The changes that are needed to reach these goals, if any.
    State {
        goals: &'a Goals,
        options: &'a PlanOptions,
    },
}

/// Applies a plan, or shows its effects.
pub(crate) fn run(
    wanted: &Wanted<'_>,
    how: &ChangeArgs,
    global: &Global,
    terminal: &Terminal,
) -> Result<Answer> {
    let host = host::live(global)?;
    let source = Source::load(global)?;
    if source.topology().needs_privilege() {
        bail!("only root can change {}: run it as root", source.from);
    }
    let mut view = View::new(&source, terminal.width);
    let (goals, made) = match wanted {
        Wanted::File(file) => {
            let text = fs::read_to_string(file)
                .with_context(|| format!("cannot read {}", file.display()))?;
            let plan =
                Plan::from_json(&text).with_context(|| format!("cannot use {}", file.display()))?;
            (plan.goals.clone(), Ok(plan))
        }
        Wanted::Args(args) => (args.goals(), make(&source, args)?),
        Wanted::State { goals, options } => {
            let made = make_plan(&source, goals, options)?;
            ((*goals).clone(), made)
        }
    };
    let plan = match made {
        Ok(plan) => plan,
        Err(refusal) => return view.refused(&source, &goals, &refusal, global.json),
    };
    let state = matches!(wanted, Wanted::State { .. });
    if state && plan.steps.is_empty() && plan.is_acceptable() {
        return Answer::either(global.json, &json::nothing(), || view.plan(&plan));
    }
    if how.dry_run {
        view.forecast = forecast(global, &source, &plan, &how.at)?;
        return dry_run(&view, &source, &plan, global.json);
    }
    let mut printer = ProgressPrinter::new(source.names, terminal, global.json);
    let ended = match Daemon::at(&how.at.daemon.socket)? {
        Some(daemon) => {
            // The check comes before devices are unplugged.
            view.forecast = Some(daemon.check(&plan)?);
            view.guests()
                .into_iter()
                .for_each(|line| printer.print(line));
            let guest = Duration::from_secs(how.guest_timeout.into());
            daemon.apply(plan.clone(), guest, &mut printer)?
        }
        None => {
            let interrupt = Interrupt::hold_off()?;
            let regroup = Regroup::new(&host, &[], StateDir::new(&how.at.state.state_dir))
                .until(interrupt.flag());
            match regroup.apply(&plan, &mut |progress| printer.record(progress)) {
                Ok(report) => Ended::Report(Box::new(report)),
                Err(RegroupError::Refused(refusal)) => Ended::Refused(with_text(&refusal.blockers)),
                Err(error) => return Err(error.into()),
            }
        }
    };
    match ended {
        Ended::Report(report) => {
            let failed = report.outcome != Outcome::New
                || !report.remains.is_empty()
                || report.open.is_some();
            Ok(ended_answer(&view, &report, &printer, global.json)?.failed_if(failed))
        }
        Ended::Refused(reasons) => {
            let answer = Answer::either(global.json, &json::refusal(&reasons), || {
                let mut text = refused(&view, &plan.goals, &reasons);
                let in_use = |reason: &Reason| matches!(reason.value, Some(Blocker::InUse { .. }));
                if reasons.iter().any(in_use) {
                    let socket = how.at.daemon.socket.display();
                    let next = format!(
                        "no daemon listens at {socket}, and only a daemon takes devices out of virtual machines \
                         and gives them back: systemctl start p2pctl"
                    );
                    view.section(&mut text, "next", vec![next.into()]);
                }
                text
            })?;
            Ok(answer.about(&source).refused_if(true))
        }
        Ended::Nothing => bail!("the daemon did not start the change"),
    }
}

/// The answer for a change that has ended.
pub(super) fn ended_answer(
    view: &View<'_>,
    report: &Report,
    printer: &ProgressPrinter,
    json: bool,
) -> Result<Answer> {
    Answer::either(json, &json::report(report), || {
        summary(view, report, &seconds(printer.elapsed()))
    })
}

fn dry_run(view: &View<'_>, source: &Source, plan: &Plan, json: bool) -> Result<Answer> {
    let forecast = view.forecast.as_ref();
    let blockers = forecast.map_or(&[][..], |forecast| &forecast.blockers);
    let refused = !blockers.is_empty();
    let answer = match (json, refused) {
        (true, true) => Answer::json(&json::refusal(&with_text(blockers)))?,
        (true, false) => Answer::json(&json::plan(&Ok(plan.clone()), forecast)?)?,
        (false, _) => Answer::text(view.plan(plan)),
    };
    Ok(answer.about(source).refused_if(refused))
}

/// The reasons for a refusal, one per line.
fn refused(view: &View<'_>, goals: &Goals, reasons: &[Reason]) -> Text {
    let mut text = Text::new();
    let title = Line::new().strong(format_args!("{}: ", view.title(goals)));
    text.push(title.toned(Tone::Bad, "refused, and nothing was changed"));
    text.blank();
    let lines = reasons
        .iter()
        .map(|reason| Line::new().toned(Tone::Bad, view.names.shorten(&reason.text)));
    view.section(&mut text, "blocked", lines.collect());
    text
}

/// The outcome, the current state, and the command that undoes the change.
fn summary(view: &View<'_>, report: &Report, took: &str) -> Text {
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
        (Outcome::Rebooted, _) => title.toned(Tone::Warn, "undone, because the host was rebooted"),
    };
    text.push_wrapped(&end, view.width, 2);
    text.blank();
    if let Some((action, error)) = &report.failure {
        let words = view.names.shorten(&format!("{action}: {error}"));
        let line = Line::new().toned(Tone::Bad, words);
        view.section(&mut text, "failed", vec![line]);
    }
    view.section(&mut text, "guests", away(view, report));
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
                "{} and the ports above are kept awake: they would lose their ACS setting in sleep",
                held.join(" ")
            );
            view.section(&mut text, "held", vec![line.into()]);
        }
        view.section(&mut text, "back", view.back(plan));
    }
    for (label, why) in [
        ("not over", &report.open),
        ("unrecorded", &report.unrecorded),
    ] {
        let lines = why.iter().map(|why| Line::new().toned(Tone::Bad, why));
        view.section(&mut text, label, lines.collect());
    }
    if report.open.is_some() {
        let next =
            "p2pctl recover   after the cause is removed; until then no other change is possible";
        view.section(&mut text, "next", vec![next.into()]);
    }
    let journal = report.journal.display().to_string();
    view.section(&mut text, "journal", vec![journal.into()]);
    text
}

/// The devices that virtual machines were without, and for how long.
fn away(view: &View<'_>, report: &Report) -> Vec<Line> {
    let Some(away_ms) = report.away_ms else {
        return Vec::new();
    };
    let time = seconds(Duration::from_millis(away_ms));
    let guests = by_guest(&report.unplugged).into_iter();
    let line = |(vm, devices): (&str, Vec<&VmDevice>)| {
        let devices = view.devices(&devices);
        format!("{vm} was without {devices} for {time}").into()
    };
    guests.map(line).collect()
}
