//! `p2pctl recover`: completes an interrupted change or rolls it back.

use std::path::Path;

use anyhow::{Result, bail};
use hotplug::regroup::{Progress, Regroup, StateDir, Vmm};

use super::apply::told;
use super::interrupt::Interrupt;
use super::plan::View;
use super::remote::{Daemon, Ended};
use crate::answer::Answer;
use crate::cli::{Global, PlaceArgs};
use crate::daemon::{Guest, Guests, Judgement, Places};
use crate::host;
use crate::json;
use crate::policy_file;
use crate::progress::{Teller, seconds};
use crate::registry;
use crate::show::{Terminal, Text};
use crate::source::Source;

/// Completes an interrupted change or rolls it back.
pub(crate) fn run(
    global: &Global,
    at: &PlaceArgs,
    policy: Option<&Path>,
    terminal: &Terminal,
) -> Result<Answer> {
    let host = host::live(global)?;
    let source = Source::load(global)?;
    let mut teller = Teller::new(source.names, terminal, global.json);
    let mut tell = |progress: &Progress<'_>| teller.tell(progress);
    let report = match Daemon::at(&at.daemon.socket)? {
        None => {
            let _held_off = Interrupt::hold_off()?;
            let state = StateDir::new(&at.state.state_dir);
            let guests = guests(global, policy, &state)?;
            let vmms: Vec<&dyn Vmm> = guests.iter().map(|guest| &**guest as &dyn Vmm).collect();
            let recovered = Regroup::new(&host, &vmms, state).recover(&mut tell)?;
            if !recovered.reset.is_empty() {
                let lost: Vec<String> = recovered.reset.iter().map(ToString::to_string).collect();
                bail!(
                    "a reset that was interrupted is over, but not all is as it was: {}",
                    lost.join("; ")
                );
            }
            recovered.report
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
    let failed = !report.remains.is_empty() || report.open.is_some();
    let answer = if global.json {
        Answer::json(&json::apply::report(&report))?
    } else {
        let view = View {
            topology: source.topology(),
            names: source.names,
            width: terminal.width,
            forecast: None,
        };
        Answer::text(told(&view, &report, &seconds(teller.elapsed())))
    };
    Ok(answer.failed_if(failed))
}

/// The virtual machines that `p2pctl launch` registered, and those in the record of the interrupted change.
fn guests(global: &Global, policy: Option<&Path>, state: &StateDir) -> Result<Vec<Guest>> {
    let places = Places {
        named: Vec::new(),
        dirs: vec![registry::VMS.into()],
    };
    let judgement = Judgement {
        sysfs: host::root(global),
        policy: policy_file::read(policy, &[])?,
    };
    let recorded = state.unfinished()?.map(|unfinished| unfinished.vms);
    Ok(Guests::new(places, judgement).with_recorded(&recorded.unwrap_or_default()))
}
