//! The commands, one per file.

mod apply;
mod draw;
mod dump;
mod explain;
mod forecast;
mod front;
pub(crate) mod groups;
mod interrupt;
mod launch;
pub(crate) mod matrix;
mod plan;
mod reconcile;
mod recover;
mod remote;
mod reset;
mod reset_scope;
mod serve;
mod status;
pub(crate) mod topology;
mod vm;
mod watch;

use anyhow::{Context, Result};
use clap::CommandFactory;
use hotplug::regroup::ResetOrder;

use crate::answer::Answer;
use crate::cli::{Cli, Command};
use crate::cloud_hypervisor::Apart;
use crate::show::Terminal;
use crate::source::Source;

/// Runs the command.
pub(crate) fn run(cli: &Cli, terminal: &Terminal) -> Result<Answer> {
    let json = cli.global.json;
    let load = || Source::load(&cli.global);
    match &cli.command {
        Command::Topology {
            below,
            all,
            policy_file,
        } => {
            let request = topology::Request { below, all: *all };
            let source = load()?.with_policy_file(policy_file.as_deref())?;
            topology::run(&source, &request, json, terminal.width)
        }
        Command::Groups { of, why } => {
            let request = groups::Request { of, why: *why };
            groups::run(&load()?, &request, json, terminal.width)
        }
        Command::Matrix {
            functions,
            policy,
            policy_file,
        } => {
            let source = load()?.with_policy_file(policy_file.as_deref())?;
            matrix::run(&source, functions, (*policy).into(), json, terminal.width)
        }
        Command::Explain {
            initiator,
            target,
            policy,
            policy_file,
        } => {
            let source = load()?.with_policy_file(policy_file.as_deref())?;
            let pair = [*initiator, *target];
            explain::run(&source, pair, (*policy).into(), json, terminal.width)
        }
        Command::Plan { goals, output, at } => {
            let request = plan::Request {
                goals,
                output: output.as_deref(),
                at,
            };
            plan::run(&load()?, &request, &cli.global, terminal.width)
        }
        Command::Apply { plan, goals, how } => {
            let what = match plan {
                Some(file) => apply::What::File(file),
                None => apply::What::Args(goals),
            };
            apply::run(&what, how, &cli.global, terminal)
        }
        Command::Reconcile { config, how } => reconcile::run(config, how, &cli.global, terminal),
        Command::Recover { policy_file, at } => {
            recover::run(&cli.global, at, policy_file.as_deref(), terminal)
        }
        Command::Serve {
            guests,
            guest_dir,
            policy_file,
            no_recover,
            at,
        } => {
            let request = serve::Request {
                socket: at.daemon.socket.clone(),
                state: at.state.state_dir.clone(),
                guests: guests.clone(),
                guest_dir: guest_dir.clone(),
                policy: policy_file.clone(),
                recover: !no_recover,
            };
            serve::run(request, &cli.global)
        }
        Command::Watch { daemon } => watch::run(&daemon.socket, json),
        Command::Status { state } => status::run(&cli.global, state, terminal.width),
        Command::KernelArgs { goals } => plan::kernel_args(&load()?, goals, json, terminal.width),
        Command::ResetScope {
            function,
            kind,
            owned,
        } => {
            let request = reset_scope::Request {
                function: *function,
                kind: *kind,
                owned,
            };
            reset_scope::run(&load()?, &request, json, terminal.width)
        }
        Command::Reset {
            function,
            kind,
            owned,
            at,
        } => {
            let order = ResetOrder {
                function: *function,
                kinds: *kind,
                owned: owned.iter().copied().collect(),
            };
            reset::run(&order, at, &cli.global, terminal.width)
        }
        Command::Launch {
            dry_run,
            joinable,
            name,
            policy_file,
            expose,
            command,
        } => {
            let request = launch::Request {
                command,
                dry_run: *dry_run,
                apart: if *joinable {
                    Apart::ForNow
                } else {
                    Apart::ForGood
                },
                name: name.as_deref(),
                policy: policy_file.as_deref(),
                expose,
            };
            launch::run(&cli.global, &request, terminal)
        }
        Command::Front {
            api_socket,
            listen,
            policy_file,
            snapshots,
            expose,
        } => {
            let request = front::Request {
                vmm: api_socket,
                listen,
                policy: policy_file.as_deref(),
                snapshots: snapshots.as_deref(),
                expose,
            };
            front::run(&cli.global, &request)
        }
        Command::Dump => Ok(dump::run(&load()?)),
        Command::Draw {
            title,
            all,
            policy,
            output,
        } => {
            let request = draw::Request {
                scope: (*policy).into(),
                title: title.as_deref(),
                all: *all,
                output: output.as_deref(),
            };
            draw::run(&load()?, &request)
        }
        Command::Vm { verb } => vm::run(verb, json, terminal),
        Command::Completions { shell } => {
            let mut out = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "p2pctl", &mut out);
            Ok(Answer::raw(String::from_utf8(out)?))
        }
        Command::Man { command } => manual(command.as_deref()),
    }
}

/// The manual page of `p2pctl` or of one command.
fn manual(command: Option<&str>) -> Result<Answer> {
    let mut all = Cli::command();
    all.build();
    let page = match command {
        None => all,
        Some(name) => all
            .find_subcommand(name)
            .with_context(|| format!("there is no command `{name}`: p2pctl --help lists them"))?
            .clone(),
    };
    let mut out = Vec::new();
    // `clap` sets the full names of subcommands when it builds the command.
    clap_mangen::Man::new(page).render(&mut out)?;
    Ok(Answer::raw(String::from_utf8(out)?))
}
