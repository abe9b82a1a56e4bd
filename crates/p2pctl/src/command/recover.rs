//! `p2pctl recover`: completes an interrupted change or rolls it back.

use std::path::Path;

use anyhow::{Result, bail};
use hotplug::regroup::{Progress, Regroup, StateDir, Vmm};

use super::apply::ended_answer;
use super::interrupt::Interrupt;
use super::plan::View;
use super::remote::{Daemon, Ended};
use crate::answer::Answer;
use crate::cli::{Global, RecoverArgs};
use crate::daemon::{CheckInputs, Guest, Guests, VmSockets};
use crate::host;
use crate::json;
use crate::policy_file;
use crate::progress::ProgressPrinter;
use crate::registry;
use crate::show::Terminal;
use crate::source::Source;

/// Completes an interrupted change or rolls it back.
pub(crate) fn run(args: &RecoverArgs, global: &Global, terminal: &Terminal) -> Result<Answer> {
    let host = host::live(global)?;
    let source = Source::load(global)?;
    let mut printer = ProgressPrinter::new(source.names, terminal, global.json);
    let report = match Daemon::at(&args.at.daemon.socket)? {
        None => {
            let _held_off = Interrupt::hold_off()?;
            let state = StateDir::new(&args.at.state.state_dir);
            let guests = guests(global, args.policy_file.as_deref(), &state)?;
            let vmms: Vec<&dyn Vmm> = guests.iter().map(|guest| &**guest as &dyn Vmm).collect();
            let mut observe = |progress: &Progress<'_>| printer.record(progress);
            let recovered = Regroup::new(&host, &vmms, state).recover(&mut observe)?;
            if !recovered.reset.is_empty() {
                let lost: Vec<String> = recovered.reset.iter().map(ToString::to_string).collect();
                bail!(
                    "an interrupted reset was recovered, but not everything is restored: {}",
                    lost.join("; ")
                );
            }
            recovered.report
        }
        Some(daemon) => match daemon.recover(&mut printer)? {
            Ended::Nothing => None,
            Ended::Report(report) => Some(*report),
            Ended::Refused(reasons) => {
                let reasons: Vec<String> = reasons.into_iter().map(|reason| reason.text).collect();
                bail!("{}", reasons.join("; "))
            }
        },
    };
    let Some(report) = report else {
        return Answer::either(global.json, &json::nothing(), || {
            "nothing to recover: no change was interrupted".into()
        });
    };
    let failed = !report.remains.is_empty() || report.open.is_some();
    let view = View::new(&source, terminal.width);
    Ok(ended_answer(&view, &report, &printer, global.json)?.failed_if(failed))
}

/// The virtual machines that `p2pctl launch` registered, and those in the record of the interrupted change.
fn guests(global: &Global, policy: Option<&Path>, state: &StateDir) -> Result<Vec<Guest>> {
    let sockets = VmSockets {
        named: Vec::new(),
        dirs: vec![registry::VMS.into()],
    };
    let check = CheckInputs {
        sysfs: host::root(global),
        policy: policy_file::read(policy, &[])?,
    };
    let recorded = state.unfinished()?.map(|unfinished| unfinished.vms);
    Ok(Guests::new(sockets, check).with_recorded(&recorded.unwrap_or_default()))
}
