//! The commands, one per file.

mod apply;
mod draw;
mod explain;
mod forecast;
pub(crate) mod groups;
mod interrupt;
mod launch;
pub(crate) mod matrix;
mod plan;
mod proxy;
mod reconcile;
mod recover;
mod remote;
mod reset;
mod reset_scope;
mod serve;
mod status;
pub(crate) mod topology;
mod vm;

use anyhow::{Context, Result};
use clap::CommandFactory;
use vmm_api::Client;

use crate::answer::Answer;
use crate::cli::{Cli, Command};
use crate::show::Terminal;
use crate::source::Source;

/// Runs the command.
pub(crate) fn run(cli: &Cli, terminal: &Terminal) -> Result<Answer> {
    let global = &cli.global;
    let (json, width) = (global.json, terminal.width);
    let load = || Source::load(global);
    let with_policy = |file: &Option<_>| load()?.with_policy_file(file.as_deref());
    match &cli.command {
        Command::Topology(args) => {
            topology::run(&with_policy(&args.policy_file)?, args, json, width)
        }
        Command::Groups(args) => groups::run(&load()?, args, json, width),
        Command::Matrix(args) => {
            matrix::run(&with_policy(&args.rules.policy_file)?, args, json, width)
        }
        Command::Explain(args) => {
            explain::run(&with_policy(&args.rules.policy_file)?, args, json, width)
        }
        Command::Plan(args) => plan::run(&load()?, args, global, width),
        Command::Apply(args) => {
            let plan = args.plan.as_deref().map(apply::Wanted::File);
            let wanted = plan.unwrap_or(apply::Wanted::Args(&args.goals));
            apply::run(&wanted, &args.how, global, terminal)
        }
        Command::Reconcile(args) => reconcile::run(args, global, terminal),
        Command::Recover(args) => recover::run(args, global, terminal),
        Command::Serve(args) => serve::run(args, global),
        Command::Watch { daemon } => vm::events::run(&Client::new(&daemon.socket), json)
            .context("is the daemon running? p2pctl serve"),
        Command::Status { state } => status::run(global, state, width),
        Command::KernelArgs { goals } => plan::kernel_args(&load()?, goals, json, width),
        Command::ResetScope(args) => reset_scope::run(&load()?, args, json, width),
        Command::Reset(args) => reset::run(args, global, width),
        Command::Launch(args) => launch::run(global, args, terminal),
        Command::Proxy(args) => proxy::run(global, args),
        // The file is always JSON.
        Command::Dump => {
            let source = load()?;
            Ok(Answer::raw(source.topology().to_fixture()).about(&source))
        }
        Command::Draw(args) => draw::run(&load()?, args),
        Command::Vm { command } => vm::run(command, json, terminal),
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
            .with_context(|| {
                format!("p2pctl has no command `{name}`: p2pctl --help lists the commands")
            })?
            .clone(),
    };
    let mut out = Vec::new();
    // `clap` sets the full names of subcommands when it builds the command.
    clap_mangen::Man::new(page).render(&mut out)?;
    Ok(Answer::raw(String::from_utf8(out)?))
}
