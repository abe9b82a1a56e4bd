//! `p2pctl recover`: brings a change to its end that was interrupted.

use anyhow::{Result, bail};
use hotplug::regroup::{Progress, Regroup, StateDir};

use super::apply::told;
use super::interrupt::Interrupt;
use super::plan::View;
use super::remote::{Daemon, Ended};
use crate::answer::Answer;
use crate::cli::{Global, PlaceArgs};
use crate::host;
use crate::json;
use crate::progress::{Teller, seconds};
use crate::show::{Terminal, Text};
use crate::source::Source;

/// Brings a change to its end, forwards or backwards, whatever is left of it.
pub(crate) fn run(global: &Global, at: &PlaceArgs, terminal: &Terminal) -> Result<Answer> {
    let host = host::live(global)?;
    let source = Source::load(global)?;
    let regroup = Regroup::new(&host, &[], StateDir::new(&at.state.state_dir));
    let mut teller = Teller::new(source.names, terminal, global.json);
    let mut tell = |progress: &Progress<'_>| teller.tell(progress);
    let report = match Daemon::at(&at.daemon.socket)? {
        None => {
            let _held_off = Interrupt::hold_off()?;
            regroup.recover(&mut tell)?
        }
        Some(daemon) => match daemon.recover(&mut tell)? {
            Ended::Nothing => None,
            Ended::Report(report) => Some(*report),
            Ended::Refused(reasons) => bail!("{}", reasons.join("; ")),
        },
    };
    let Some(report) = report else {
        return if global.json {
            Answer::json(&json::apply::nothing())
        } else {
            let mut text = Text::new();
            text.push("nothing to recover: every change came to its end");
            Ok(Answer::text(text))
        };
    };
    let failed = !report.remains.is_empty();
    let answer = if global.json {
        Answer::json(&json::apply::report(&report))?
    } else {
        let view = View {
            topology: &source.topology,
            names: source.names,
            width: terminal.width,
            forecast: None,
        };
        Answer::text(told(&view, &report, &seconds(teller.elapsed())))
    };
    Ok(answer.failed_if(failed))
}
