//! `p2pctl reset`: resets an unused function.

use anyhow::Result;
use hotplug::regroup::{Regroup, RegroupError, ResetDone, ResetOrder, StateDir};
use iommu_group::Sbdf;

use super::interrupt::Interrupt;
use super::plan::View;
use super::remote::Daemon;
use crate::answer::Answer;
use crate::cli::{Global, ResetArgs};
use crate::host;
use crate::json;
use crate::show::{Line, Text, Tone};
use crate::source::Source;

/// Resets a function, if the caller owns all affected functions and none of them is in use.
pub(crate) fn run(args: &ResetArgs, global: &Global, width: usize) -> Result<Answer> {
    let order = ResetOrder {
        function: args.function,
        kinds: args.kind,
        owned: args.owned.iter().copied().collect(),
    };
    let at = &args.at;
    let host = host::live(global)?;
    let source = Source::load(global)?;
    source.must_have(&[order.function])?;
    let result = match Daemon::at(&at.daemon.socket)? {
        Some(daemon) => daemon.reset(&order)?,
        None => {
            let _held_off = Interrupt::hold_off()?;
            let regroup = Regroup::new(&host, &[], StateDir::new(&at.state.state_dir));
            match regroup.reset(&order) {
                Ok(done) => Ok(done),
                Err(RegroupError::Refused(refusal)) => {
                    Err(refusal.blockers.iter().map(ToString::to_string).collect())
                }
                Err(error) => return Err(error.into()),
            }
        }
    };
    let refused = result.is_err();
    let document = json::reset(order.function, &result);
    let answer = Answer::either(global.json, &document, || {
        summary(&View::new(&source, width), order.function, &result)
    })?;
    Ok(answer.about(&source).refused_if(refused))
}

/// The functions that were reset, or the reasons of a refusal.
fn summary(view: &View<'_>, function: Sbdf, result: &Result<ResetDone, Vec<String>>) -> Text {
    let names = view.names;
    let mut text = Text::new();
    let title = Line::new().strong(format_args!("reset {}: ", names.of(function)));
    match result {
        Ok(done) => {
            text.push(title.toned(Tone::Good, format_args!("done, by {}", done.kind)));
            text.blank();
            let hits: Vec<String> = done.hits.iter().map(|hit| names.of(*hit)).collect();
            view.section(&mut text, "hit", vec![hits.join(" ").into()]);
            let ports = done.ports.iter();
            let ports = ports.map(|(port, acs)| format!("{} {acs}", names.of(*port)).into());
            view.section(&mut text, "ACS again", ports.collect());
        }
        Err(reasons) => {
            text.push(title.toned(Tone::Bad, "refused, and nothing was changed"));
            text.blank();
            let reasons = reasons.iter();
            let lines = reasons.map(|reason| Line::new().toned(Tone::Bad, names.shorten(reason)));
            view.section(&mut text, "blocked", lines.collect());
        }
    }
    text
}
