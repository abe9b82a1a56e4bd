//! `p2pctl serve`: the host's daemon.

use std::env;
use std::fs;
use std::io::Write;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use hotplug::regroup::StateDir;
use log::{Level, LevelFilter};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use vmm_api::{ApiServer, EventLog};

use crate::answer::Answer;
use crate::cli::{Global, ServeArgs};
use crate::daemon::{
    Calls, CheckInputs, Drift, Guests, Host, STEP, TransactionRunner, VmSockets, ready,
};
use crate::host;
use crate::policy_file;
use crate::registry;
use crate::sandbox;
use crate::show::Text;
use crate::source::Source;

/// Serves until a signal, and then until a running change has ended.
pub(crate) fn run(args: &ServeArgs, global: &Global) -> Result<Answer> {
    let host = host::live(global)?;
    if Source::load(global)?.topology().needs_privilege() {
        bail!("only root can change the host: run it as root");
    }
    log_to_stderr();
    // Comes before other threads are started, because they would receive the signals.
    let mut signals = Signals::new([SIGINT, SIGTERM]).context("cannot wait for signals")?;
    sandbox::daemon()?;
    let events = EventLog::new();
    let registered = [registry::VMS.into()];
    let socket = &args.at.daemon.socket;
    let host = Host {
        host,
        guests: Guests::new(
            VmSockets {
                named: args.guests.clone(),
                dirs: args
                    .guest_dir
                    .clone()
                    .into_iter()
                    .chain(registered)
                    .collect(),
            },
            CheckInputs {
                sysfs: host::root(global),
                policy: policy_file::read(args.policy_file.as_deref(), &[])?,
            },
        ),
        state: StateDir::new(&args.at.state.state_dir),
    };
    let runner = TransactionRunner::new(host, events.clone());
    if !args.no_recover {
        match runner.recover() {
            Ok(Some(id)) => {
                eprintln!("p2pctl: recovering the interrupted change {id}");
            }
            Ok(None) => {}
            // The daemon serves other requests anyway, and the operator must see the error.
            Err(error) => eprintln!("p2pctl: cannot recover: {}", error_text(&error)),
        }
    }
    if let Some(dir) = socket.parent() {
        fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    }
    let calls = Arc::new(Calls::new(runner.clone(), global.clone()));
    let server = ApiServer::with_handler(socket, &events, calls)?;
    let drift =
        Drift::start(runner.clone(), global.clone()).context("cannot start to watch the host")?;
    if let Some(manager) = env::var_os("NOTIFY_SOCKET")
        && let Err(error) = ready(&manager)
    {
        eprintln!("p2pctl: cannot notify the service manager: {error}");
    }
    eprintln!("p2pctl: listening at {}", socket.display());
    let signal = signals.forever().next();
    drop(server);
    drop(drift);
    runner.wait_idle();
    if signal == Some(SIGINT) {
        eprintln!();
    }
    Ok(Answer::text(Text::new()))
}

/// Logs events to standard error, which is the journal of a systemd unit. The steps of a change have their own journal.
fn log_to_stderr() {
    env_logger::Builder::new()
        .filter_level(LevelFilter::Info)
        .filter_module(&format!("{}{STEP}", vmm_api::EVENTS), LevelFilter::Off)
        .format(|to, record| match record.level() {
            Level::Info => writeln!(to, "p2pctl: {}", record.args()),
            level => {
                let level = level.as_str().to_ascii_lowercase();
                writeln!(to, "p2pctl: {level}: {}", record.args())
            }
        })
        .init();
}

fn error_text(error: &vmm_api::Failure) -> String {
    match error {
        vmm_api::Failure::Refused { reasons } => reasons.join("; "),
        vmm_api::Failure::Failed { messages } => messages.join(": "),
        other => other.to_string(),
    }
}
